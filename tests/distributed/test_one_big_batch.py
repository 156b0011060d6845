"""N ranks train as one process with one big batch does (cases 16, 40 and 41).

One test a world, because its processes are dear: each checks every case on what they returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from data_parallel import CASES, STEPS, Result, train_all, train_whole
from ranks import on_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

# What rounding makes of 50 steps; bfloat16 is a different, coarser curvature.
TOLERANCE = {"thor in float32": 2e-5, "bfloat16 on the wire": 2e-2}
# Cases whose mathematics depends on how many ranks there are.
FOR_FOUR = ("thor", "trace rule", "uneven batches", "owners", "ekfac, owners", *TOLERANCE)


@pytest.mark.parametrize(("size", "names"), [(2, tuple(CASES)), (4, FOR_FOUR)])
def test_ranks_train_as_one_process_with_one_big_batch(size: int, names: tuple[str, ...]) -> None:
    ranks = on_ranks(size, train_all, names)
    for name in names:
        results, whole = [rank[name] for rank in ranks], train_whole(CASES[name], size)
        parameters_are_those_of_one_process(name, results[0], whole)
        ranks_are_bitwise_equal(name, results)
        decisions_are_those_of_one_process(name, results, whole)
    steps_without_refresh_send_nothing(ranks[0]["thor"])
    assert any(verdict != "update" for _, _, verdict, _ in ranks[0]["trace rule"].decisions)
    sizes = {name: sum(ranks[0][name].sizes) for name in TOLERANCE}
    assert sizes["bfloat16 on the wire"] < sizes["thor in float32"]


def parameters_are_those_of_one_process(name: str, found: Result, whole: Result) -> None:
    """Case 16."""
    limit = TOLERANCE.get(name, 1e-10)
    for ours, theirs in zip(found.weights, whole.weights, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=limit, atol=limit, msg=lambda text: f"{name}: {text}"
        )


def ranks_are_bitwise_equal(name: str, results: list[Result]) -> None:
    """Case 40: parameters, and all of the optimizer's state."""
    first = [*tensors_of(results[0].weights), *tensors_of(results[0].state)]
    for other in results[1:]:
        theirs = [*tensors_of(other.weights), *tensors_of(other.state)]
        assert len(first) == len(theirs), name
        assert all(map(torch.equal, first, theirs)), name


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(part)


def decisions_are_those_of_one_process(name: str, results: list[Result], whole: Result) -> None:
    """Case 40: to the bit between ranks; rounding may move Δ against one process."""
    assert all(other.decisions == results[0].decisions for other in results), name
    assert [d[:3] for d in results[0].decisions] == [d[:3] for d in whole.decisions], name


def steps_without_refresh_send_nothing(result: Result) -> None:
    refreshing = {step for _, step, _, _ in result.decisions}
    assert 0 < len(refreshing) < STEPS
    assert [step for step, count in enumerate(result.messages) if count] == sorted(refreshing)
