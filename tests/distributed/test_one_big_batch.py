"""N ranks train as one process with one big batch does (cases 16, 40 and 41)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from data_parallel import CASES, STEPS, Result, train_all, train_whole
from ranks import on_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

WORLDS = (2, 4)
# What rounding makes of 50 steps; bfloat16 is a different, coarser curvature.
TOLERANCE = {"thor in float32": 2e-5, "bfloat16 on the wire": 2e-2}
EVERYWHERE = pytest.mark.parametrize("size", WORLDS)
EACH_CASE = pytest.mark.parametrize("name", CASES)


@cache
def trained(size: int) -> list[dict[str, Result]]:
    """All cases on real processes, once a session."""
    return on_ranks(size, train_all)


@cache
def whole(name: str, size: int) -> Result:
    return train_whole(CASES[name], size)


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(part)


@EVERYWHERE
@EACH_CASE
def test_parameters_equal_those_of_one_big_batch(name: str, size: int) -> None:
    """Case 16."""
    for found, expected in zip(
        trained(size)[0][name].weights, whole(name, size).weights, strict=True
    ):
        limit = TOLERANCE.get(name, 1e-10)
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


@EVERYWHERE
@EACH_CASE
def test_parameters_and_state_are_bitwise_equal_on_all_ranks(name: str, size: int) -> None:
    """Case 40."""
    first, *others = (results[name] for results in trained(size))
    for other in others:
        assert all(map(torch.equal, first.weights, other.weights))
        pairs = list(zip(tensors_of(first.state), tensors_of(other.state), strict=True))
        assert pairs
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@EVERYWHERE
def test_the_trace_rule_decides_the_same_everywhere(size: int) -> None:
    """Case 40."""
    decisions = [results["trace rule"].decisions for results in trained(size)]
    assert {verdict for _, _, verdict, _ in decisions[0]} > {"update"}, "the rule never spoke"
    assert all(other == decisions[0] for other in decisions)
    alone = whole("trace rule", size).decisions
    assert [d[:3] for d in decisions[0]] == [d[:3] for d in alone]


@EVERYWHERE
def test_steps_without_refresh_send_nothing(size: int) -> None:
    result = trained(size)[0]["thor"]
    refreshing = {step for _, step, _, _ in result.decisions}
    assert 0 < len(refreshing) < STEPS
    for step, messages in enumerate(result.messages):
        assert (messages > 0) == (step in refreshing)
