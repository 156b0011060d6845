"""Promise: defaults win on an untuned first try, and no preset's defaults diverge."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from digits import train_on_digits
from helpers import grafted
from torch_thor import EKFAC, KFAC, THOR

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = (0, 1, 2)


def medians(build: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[float, float]:
    """The medians of the final validation loss and of the accuracy."""
    curves = [train_on_digits(build, seed, epochs=6) for seed in SEEDS]
    return median(c.final for c in curves), median(c.accuracy for c in curves)


@pytest.mark.parametrize(
    "peer",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True),
        lambda model: torch.optim.AdamW(model.parameters()),
    ],
    ids=["SGD 0.1", "SGD 0.01", "AdamW"],
)
@pytest.mark.parametrize("ours", [THOR, grafted], ids=["THOR", "graft"])
def test_thor_out_of_the_box_beats_the_usual_first_tries(
    ours: Callable[[nn.Module], torch.optim.Optimizer],
    peer: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    """Case 43."""
    (loss, accuracy), (their_loss, their_accuracy) = medians(ours), medians(peer)
    assert loss < their_loss
    assert accuracy >= their_accuracy


@pytest.mark.parametrize("kind", [THOR, grafted, KFAC, EKFAC])
def test_no_preset_diverges_with_its_defaults(
    kind: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    """Case 43."""
    for seed in SEEDS:
        curve = train_on_digits(kind, seed)
        assert math.isfinite(curve.final)
        assert curve.losses[-1] < 0.5 * curve.losses[0]
        assert curve.accuracy > 0.9


def test_curvature_is_what_helps_out_of_the_box() -> None:
    """Case 43: the same optimizer without any preconditioned layer does worse."""

    def mean(build: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
        return sum(train_on_digits(build, seed).final for seed in SEEDS) / len(SEEDS)

    assert mean(THOR) < 0.95 * mean(lambda model: THOR(model, exclude=(nn.Linear,)))
