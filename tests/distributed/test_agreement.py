"""What ranks must agree on, and what they are told when they don't, or when one is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import disagreeing_ranks
from ranks import RankError, attempt_on_ranks, on_ranks

if TYPE_CHECKING:
    from pathlib import Path


def test_another_model_or_other_options_are_an_error_on_all_ranks() -> None:
    for told in on_ranks(2, disagreeing_ranks.mismatches):
        assert told.pop("same") == "no error"
        for difference, message in told.items():
            what = "model" if difference in ("shapes", "frozen") else "options of the"
            assert message.startswith(f"StateMismatchError: The ranks differ in {what}"), difference


def test_ranks_that_take_different_steps_are_told_so() -> None:
    for message in on_ranks(2, disagreeing_ranks.different_layers):
        assert message.startswith("StateMismatchError: The ranks are about to do different things")


def test_a_rank_that_stays_away_is_an_error_within_the_time_limit() -> None:
    waiting, _ = on_ranks(2, disagreeing_ranks.a_rank_that_stays_away, 5.0)
    assert waiting.startswith("CollectiveError: Rank 0 of 2: the collective 'the first statistics'")


def test_a_rank_that_dies_is_an_error_on_the_others() -> None:
    left, dead = attempt_on_ranks(2, disagreeing_ranks.a_rank_that_dies)
    assert left.startswith(
        "CollectiveError: Rank 0 of 2: the collective 'the refresh of step 1: 0, 2'"
    )
    assert isinstance(dead, RankError)


def test_an_optimizer_that_is_older_than_the_process_group_says_so(tmp_path: Path) -> None:
    for message in on_ranks(2, disagreeing_ranks.built_too_early, str(tmp_path / "second")):
        assert message.startswith("StateMismatchError: The optimizer was built before")


def test_ranks_may_train_models_of_their_own() -> None:
    for trained, outside, kind in on_ranks(2, disagreeing_ranks.groups_of_one):
        assert trained == "no error"
        assert outside.startswith("InvalidOptionError: Invalid group=")
        assert kind == "Communicator"


def test_a_run_goes_on_bit_for_bit_from_the_state_of_one_rank() -> None:
    """Case 35."""
    for run, heir in on_ranks(2, disagreeing_ranks.resumed, 6):
        assert run.steps == heir.steps == 12
        assert all(map(torch.equal, run.weights, heir.weights))
        assert all(map(torch.equal, run.factors, heir.factors))


def test_the_cheaper_way_to_invert_is_taken_and_stands_in_the_log() -> None:
    first, second = on_ranks(2, disagreeing_ranks.profile_and_log)
    assert first == second
    _, free, dear = first
    assert free.startswith("Owners invert and send 6 blocks: 6 s on every rank, 3 s by owners")
    assert dear.startswith("Every rank inverts all of 6 blocks: 6 s on every rank, 1e+09 s by own")


def test_bytes_of_a_refresh_of_resnet50() -> None:
    """Packed triangles of all diagonal blocks, and the traces before them."""
    pytest.importorskip("torchvision", reason="the extra 'vision' is not installed")
    for exact, half in on_ranks(2, disagreeing_ranks.resnet_bytes):
        assert exact.gradients > 102e6
        assert exact.factors <= 22e6
        assert half.factors <= 11e6
        assert exact.factors > half.factors > 5e6, "what was counted is no refresh of all layers"
