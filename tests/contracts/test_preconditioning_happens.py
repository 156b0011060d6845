"""Promise: no mode skips preconditioning silently."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from helpers import convnet, data, gradients, mean_half_square, weights
from torch_thor import EKFAC, KFAC, THOR, Damping, Preconditioner, Statistics


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize(
    ("mode", "power", "split", "sharing"),
    list(
        itertools.product(
            ["both", "sqrt", "pi", "relative"], [1.0, 0.5], [None, 4], ["expand", "reduce"]
        )
    ),
)
def test_the_direction_is_not_a_multiple_of_the_gradient(
    mode: Any, power: float, split: int | None, sharing: Any
) -> None:
    """Case 20."""
    model = convnet()
    preconditioner = Preconditioner(
        model,
        damping=Damping(1e-3, mode),
        power=power,
        split=split,
        statistics=Statistics(weight_sharing=sharing),
    )
    inputs, targets = data(8, 2, 6, 6)
    mean_half_square(model(inputs), targets).backward()
    raw = gradients(model)
    preconditioner.step()
    for before, after in zip(raw, gradients(model), strict=True):
        if after.dim() > 1:
            assert cosine(before, after) < 0.99


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
@pytest.mark.parametrize("control", [None, "kl_clip", "graft", "rms"])
def test_the_very_first_step_is_preconditioned(kind: type[THOR], control: Any) -> None:
    """Case 20."""
    model = convnet()
    optimizer = kind(model, lr=0.1, weight_decay=0.0, momentum=0.0, norm_control=control)
    inputs, targets = data(8, 2, 6, 6)
    mean_half_square(model(inputs), targets).backward()
    raw = gradients(model)
    before = weights(model)
    optimizer.step()
    for gradient, old, parameter in zip(raw, before, model.parameters(), strict=True):
        if parameter.dim() > 1:
            assert cosine(gradient, old - parameter.detach()) < 0.99
