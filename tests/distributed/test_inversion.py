"""Which rank inverts what, and how measured times become costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_thor.distributed.inversion import Profile, longest_load, place


@given(st.lists(st.floats(0.01, 100), max_size=30), st.integers(1, 8))
def test_loads_are_as_even_as_the_greedy_rule_promises(costs: list[float], ranks: int) -> None:
    owners = place(costs, ranks)
    assert len(owners) == len(costs)
    assert all(0 <= owner < ranks for owner in owners)
    # The rank that ends last began its last job no later than the mean load of all others.
    most = sum(costs) / ranks + (1 - 1 / ranks) * max(costs, default=0.0)
    assert longest_load(costs, owners, ranks) <= most + 1e-9


def test_large_jobs_are_placed_before_small_ones() -> None:
    costs = [1.0, 1.0, 1.0, 3.0]
    assert longest_load(costs, place(costs, 2), 2) == 3.0


def test_fewer_jobs_than_ranks_leave_ranks_without_work() -> None:
    """Case 41."""
    assert sorted(place([1.0, 2.0], 4)) == [0, 1]


def test_equal_jobs_are_dealt_out_in_turn() -> None:
    owners = place([1.0] * 6, 3)
    assert [owners.count(rank) for rank in range(3)] == [2, 2, 2]


def test_costs_between_and_beyond_measured_sizes() -> None:
    """Sizes 16, 64 and 256 are measured; a power law lies between, a cube beyond."""
    profile = Profile((1.0, 16.0, 256.0), 0.0, 0.0)
    found = [profile.inversion(size) for size in (4, 16, 32, 64, 128, 256, 512)]
    assert found == pytest.approx([1.0, 1.0, 4.0, 16.0, 64.0, 256.0, 2048.0], rel=1e-5)
