"""Promise: parameters that change on one rank only are an error in words on all (case 65)."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import changing_ranks
from changing_ranks import CHANGES, Run
from ranks import on_ranks

RANKS = 2
EACH = pytest.mark.parametrize("change", CHANGES)


@cache
def on_one(first: bool) -> list[dict[str, Run]]:
    return on_ranks(RANKS, _on_one, first)


def _on_one(first: bool) -> dict[str, Run]:
    return changing_ranks.changed_on_the_last_rank(first=first)


@cache
def on_all() -> list[dict[str, Run]]:
    return on_ranks(RANKS, changing_ranks.changed_on_all_ranks)


@EACH
@pytest.mark.parametrize("first", [False, True])
def test_a_change_on_one_rank_is_an_error_on_all_and_moves_nothing(
    change: str, first: bool
) -> None:
    for rank in on_one(first):
        run = rank[change]
        wrong = 0 if first else 1
        said = run.said[wrong]
        assert said.startswith("StateMismatchError: The ranks differ in the parameters that train")
        assert said.endswith("Freeze, thaw and add parameters on all ranks alike.")
        assert all(one == "no error" for n, one in enumerate(run.said) if n != wrong)
        if not first:
            before, after = run.weights[:2]
            assert all(
                torch.equal(a.float(), b.float()) for a, b in zip(before, after, strict=True)
            )


@EACH
@pytest.mark.parametrize("first", [False, True])
def test_training_goes_on_where_the_change_is_taken_back(change: str, first: bool) -> None:
    one, other = (rank[change].weights[-1] for rank in on_one(first))
    assert all(map(torch.equal, one, other))


@EACH
def test_a_change_on_all_ranks_is_followed(change: str) -> None:
    one, other = (rank[change] for rank in on_all())
    assert set(one.said + other.said) == {"no error"}
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        assert all(map(torch.equal, ours, theirs))


@EACH
def test_a_step_like_the_one_before_sends_gradients_alone(change: str) -> None:
    """One message for each type of parameter; a change costs two more, once."""
    for rank in on_all():
        _, changed, *plain = rank[change].messages
        types = 2 if change == "another type" else 1
        assert plain == [types, types]
        assert changed == types + 2


def test_a_parameter_without_a_gradient_on_one_rank_counts_as_zero() -> None:
    for gradients in on_ranks(RANKS, changing_ranks.without_gradients_on_one_rank):
        *present, weight, bias = gradients
        assert all(torch.equal(one, torch.full_like(one, 0.5)) for one in present)
        assert weight.numel() == bias.numel() == 0
