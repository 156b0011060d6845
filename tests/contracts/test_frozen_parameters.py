"""Promise: frozen parameters stay, trained ones move, and a thawed layer joins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import EXACT, data, gradient_matrices, half_square, mean_half_square, mlp, weights
from oracle import direction, factors, observe
from torch_thor import THOR, Damping, Preconditioner, Treatment


@pytest.mark.parametrize("weight_trained", [True, False])
@pytest.mark.parametrize("bias", ["none", "trained", "frozen"])
def test_every_combination_of_frozen_weight_and_bias(bias: str, weight_trained: bool) -> None:
    """Case 10."""
    layer = nn.Linear(5, 4, bias=bias != "none")
    layer.weight.requires_grad_(weight_trained)
    if layer.bias is not None:
        layer.bias.requires_grad_(bias == "trained")
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 3))
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    before = weights(model)
    for _ in range(2):
        optimizer.zero_grad()
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        optimizer.step()
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(parameter, old) != parameter.requires_grad, name
    report = {entry.name: entry.treatment for entry in optimizer.coverage()}
    expected = Treatment.PRECONDITIONED if weight_trained else Treatment.FROZEN
    assert report["0.weight"] is expected


def test_a_frozen_bias_leaves_the_weight_its_own_factor() -> None:
    """Case 10: no column of ones for a bias that does not train."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model.get_parameter("0.bias").requires_grad_(False)
    inputs, targets = data(8, dtype=torch.float64)
    twin = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    twin.load_state_dict(model.state_dict())
    seen = observe(twin, "0", inputs, targets, half_square)[0]
    A, G = factors(seen)
    expected = direction(seen.mean_gradient[:, :-1], A[:-1, :-1], G, damping=0.1)
    preconditioner = Preconditioner(
        model, damping=Damping(0.1, "both"), split=None, power=1.0, **EXACT
    )
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    torch.testing.assert_close(next(gradient_matrices(model[0])), expected)


def test_a_layer_thawed_later_joins() -> None:
    """Case 10: gradual unfreezing."""
    model = mlp().double()
    model[0].requires_grad_(requires_grad=False)
    preconditioner = Preconditioner(
        model, damping=Damping(0.1, "both"), split=None, power=1.0, **EXACT
    )
    batches = [data(8, dtype=torch.float64) for _ in range(3)]
    for inputs, targets in batches[:2]:
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        model[0].requires_grad_()  # from the second batch on
    inputs, targets = batches[2]
    seen = observe(model, "0", inputs, targets, half_square)[0]
    model.zero_grad()
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    expected = direction(seen.mean_gradient, *factors(seen), damping=0.1)
    torch.testing.assert_close(next(gradient_matrices(model[0])), expected)


@pytest.mark.parametrize("control", ["graft", "spectral"])
def test_a_layer_frozen_later_stops_moving(control: Any) -> None:
    """Case 10: and its momentum does not go on pushing it."""
    model = mlp()
    optimizer = THOR(model, norm_control=control, lr=0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        if step == 2:
            model[0].requires_grad_(requires_grad=False)
            before = weights(model[0])
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(before, weights(model[0]), strict=True))


@pytest.mark.parametrize("control", ["graft", "spectral"])
def test_a_gradient_counts_where_the_layer_is_frozen_again_before_the_step(control: Any) -> None:
    """As in torch's optimizers: helpers of GANs freeze what they have run backward through."""
    model = mlp()
    optimizer = THOR(model, norm_control=control, lr=0.1)
    before = weights(model)
    for _ in range(3):
        model.requires_grad_()
        optimizer.zero_grad()
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        model.requires_grad_(requires_grad=False)
        optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))
