"""Weights whose rows are dealt out to ranks (FSDP2) train as whole ones do (cases 39 to 41)."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

import sharded
from ranks import on_ranks
from sharded import CASES, STEPS, WORKS_HERE, Result

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = [
    pytest.mark.cpu,  # ranks talk over gloo
    pytest.mark.skipif(not WORKS_HERE, reason="this torch can't shard on a CPU"),
]

WORLDS = (2, 4)
EVERYWHERE = pytest.mark.parametrize("size", WORLDS)
EACH_CASE = pytest.mark.parametrize(
    ("size", "name"),
    [(size, name) for size in WORLDS for name, case in CASES.items() if size > case.replicas],
)


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Where both worlds leave their checkpoints."""
    return tempfile.TemporaryDirectory()


@cache
def found(size: int) -> list[dict[str, Any]]:
    """What every rank did, once a session."""
    return on_ranks(size, sharded.everything, folder().name)


@cache
def whole(name: str) -> Result:
    return sharded.alone(name)


def assert_all_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@EACH_CASE
def test_parameters_equal_the_unsharded_ones(size: int, name: str) -> None:
    assert_all_close(found(size)[0]["trained"][name].weights, whole(name).weights)


@EACH_CASE
def test_decisions_equal_the_unsharded_ones_on_every_rank(size: int, name: str) -> None:
    """Case 56: a rule reads the whole layer, though no rank holds it."""
    expected = whole(name).decisions
    for rank in found(size):
        ours = rank["trained"][name].decisions
        assert [(d.layer, d.step, d.decision) for d in ours] == [
            (d.layer, d.step, d.decision) for d in expected
        ]
        changes = [[d.change for d in decisions] for decisions in (ours, expected)]
        assert changes[0] == pytest.approx(changes[1], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "rule" in name])
def test_the_rules_of_these_cases_keep_some_layers_and_refresh_others(name: str) -> None:
    assert len({decision.decision for decision in whole(name).decisions}) > 1


@EVERYWHERE
def test_a_rank_keeps_the_blocks_of_its_own_rows(size: int) -> None:
    kept = found(size)[0]["trained"]["thor"].shapes
    rows = [shape[2] * shape[3] for shape in kept]
    assert rows == [8 // size, 8 // size, 16 // size, 8 // size]


@EACH_CASE
def test_memory_is_that_of_the_own_rows(size: int, name: str) -> None:
    total = 0
    for result in (rank["trained"][name] for rank in found(size)):
        before, after = result.memory
        assert before == after
        total += before.inverses
    assert before.inverses < whole(name).memory[0].inverses < total


@EACH_CASE
def test_steps_without_refresh_send_nothing(size: int, name: str) -> None:
    for result in (rank["trained"][name] for rank in found(size)):
        assert 0 < len(result.refreshing) < STEPS
        for number, messages in enumerate(result.messages):
            assert (messages > 0) == (number in result.refreshing)


@EVERYWHERE
def test_a_shard_that_is_not_finite_stops_nobody(size: int) -> None:
    """Case 24 where one rank alone sees it: its rows skip the step, all count it."""
    seen = [rank["bad"] for rank in found(size)]
    for number in range(10):
        assert all(map(torch.equal, seen[0][number], seen[1][number]))
        assert all(bool(weight.isfinite().all()) for weight in seen[0][number])
    before, after = (seen[0][number][6] for number in (7, 8))
    own = slice(16 // size, 2 * 16 // size)
    assert torch.equal(after[own], before[own]), "the rows of rank 1 wait"
    assert not torch.equal(after[:1], before[:1]), "the others move"


@pytest.mark.parametrize("saved", WORLDS)
@pytest.mark.parametrize("size", WORLDS)
def test_a_checkpoint_goes_on_in_a_world_of_another_size(size: int, saved: int) -> None:
    goes_on = found(saved)[0]["saved"]
    for world in WORLDS:  # both have to have left their checkpoints
        found(world)
    assert_all_close(loaded(size)[f"of-{saved}"], goes_on)


@cache
def loaded(size: int) -> dict[str, list[Tensor]]:
    return on_ranks(size, sharded.load_all, folder().name)[0]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("ekfac", "second moments"),
        ("kl_clip", "no rank has a whole layer"),
        ("per layer", "no rank has a whole layer"),
        ("0.weight", "sharded along a dimension that is not its rows"),
        ("1.weight", "sharded along a dimension that is not its rows"),
        ("2.weight", "sharded along a dimension that is not its rows"),
        ("3.parametrizations.weight.original1", "weight norm of a shard"),
    ],
)
def test_what_can_not_be_sharded_is_said(what: str, words: str) -> None:
    assert words in found(2)[0]["said"][what]


@EVERYWHERE
def test_the_default_trains_shards_without_a_message_more(size: int) -> None:
    first, *others = ranks = [rank["default"] for rank in found(size)]
    before, after = (sum(rank["losses"][turn] for rank in ranks) for turn in (0, -1))
    assert after < 0.5 * before
    assert set(first["messages"]) == {0}
    assert first["left"] == ["7.weight"]
    for rank in others:
        assert all(map(torch.equal, rank["weights"], first["weights"]))
    assert all(map(torch.equal, first["resumed"], first["weights"]))
