"""Promise: the KL clip counts the learning rate once and never divides by zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import (
    EXACT_THOR,
    Scale,
    data,
    gradient_matrices,
    half_square,
    mean_half_square,
    mlp,
    weights,
)
from oracle import direction, factors, kl_clip_factor, observe
from torch_thor import THOR, Damping, NormControl, Update

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN: dict[str, Any] = {
    **EXACT_THOR,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "damping": Damping(0.1, "both"),
    "split": None,
    "power": 1.0,
    "update": Update(nesterov=False),
}


@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("limit", [1e-4, 1e4])
def test_all_layers_share_the_factor_of_the_formula(lr: float, limit: float) -> None:
    """Case 19."""
    model = mlp().double()
    inputs, targets = data(8, dtype=torch.float64)
    layers = {name: observe(model, name, inputs, targets, half_square)[0] for name in ("0", "2")}
    steps = {
        name: direction(seen.mean_gradient, *factors(seen), damping=0.1)
        for name, seen in layers.items()
    }
    factor = kl_clip_factor(
        list(steps.values()), [seen.mean_gradient for seen in layers.values()], lr, limit
    )
    assert (factor < 1) == (limit < 1)
    optimizer = THOR(model, lr=lr, **{**PLAIN, "norm_control": NormControl("kl_clip", limit)})
    before = weights(model)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        parameter.grad = (old - parameter.detach()) / lr  # what was stepped along
    for name, step in steps.items():
        torch.testing.assert_close(
            next(gradient_matrices(model.get_submodule(name))), factor * step
        )


@pytest.mark.parametrize("build", [lambda: nn.Sequential(Scale(5)), mlp], ids=["no layer", "mlp"])
def test_no_layers_or_no_gradient_divide_by_nothing(build: Callable[[], nn.Module]) -> None:
    """Case 19."""
    model = build()
    optimizer = THOR(model, lr=0.1, **{**PLAIN, "norm_control": NormControl("kl_clip", 1e-3)})
    before = weights(model)
    (0.0 * model(torch.randn(4, 5)).sum()).backward()
    optimizer.step()
    for old, new in zip(before, weights(model), strict=True):
        assert torch.equal(old, new)
