"""What each rank sees of its layers: of data-parallel ones all, of sharded ones its own rows."""

from __future__ import annotations

from dataclasses import astuple
from functools import cache
from typing import TYPE_CHECKING

import pytest

import watching_ranks
from ranks import on_ranks
from sharded import WORKS_HERE
from watching_ranks import built, network, steps

if TYPE_CHECKING:
    from torch_thor import LayerNumbers

pytestmark = [
    pytest.mark.cpu,  # ranks talk over gloo
    pytest.mark.skipif(not WORKS_HERE, reason="this torch can't shard on a CPU"),
]

Found = dict[str, "tuple[LayerNumbers, ...]"]


@cache
def found() -> list[Found]:
    return on_ranks(2, watching_ranks.everything)


@cache
def alone() -> tuple[LayerNumbers, ...]:
    model = network()
    return steps(model, built(model), 0, 1)


def test_ranks_of_one_batch_see_what_one_process_does() -> None:
    for rank in found():
        for ours, expected in zip(rank["ddp"], alone(), strict=True):
            assert astuple(ours)[2:] == pytest.approx(astuple(expected)[2:], rel=1e-3, nan_ok=True)


def test_a_rank_sees_its_own_rows_of_a_sharded_layer() -> None:
    """Of A each has all; ranks of G's rows are of those that it owns."""
    first, second = (rank["fsdp"] for rank in found())
    for one, other, expected in zip(first, second, alone(), strict=True):
        for ours in (one, other):
            assert (ours.age, ours.size) == (expected.age, expected.size)
            assert ours.change == pytest.approx(expected.change, rel=1e-3, nan_ok=True)
            assert ours.rank_a == pytest.approx(expected.rank_a, rel=1e-3)
            assert ours.condition_a == pytest.approx(expected.condition_a, rel=1e-3)
            assert 1.0 <= ours.rank_g <= expected.size[1] / 2 * 1.001
            assert ours.step > 0
            assert 0 <= ours.turned <= 1
        # The whole factor's largest condition is that of one of the parts.
        most = max(one.condition_g, other.condition_g)
        assert most == pytest.approx(expected.condition_g, rel=1e-2)
