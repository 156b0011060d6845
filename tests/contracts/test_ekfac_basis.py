"""Promise: when EKFAC's basis changes, its scalings are recomputed with it."""

from __future__ import annotations

import torch
from torch import nn

from helpers import data, half_square, train
from oracle import ekfac_direction, factors, observe
from torch_thor import EKFAC, Damping, Statistics


def test_scalings_belong_to_the_basis_of_the_same_step() -> None:
    """Case 21: batches of very different shape turn the basis at every refresh."""
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = EKFAC(
        model,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        norm_control=None,
        damping=Damping(0.1, "both"),
        factor_interval=1,
        inverse_interval=1,
        statistics=Statistics(decay=0.0, rows=None),
    )
    for step in range(4):
        stretch = torch.ones(4, dtype=torch.float64)
        stretch[step % 4] = 10.0
        inputs, targets = data(16, 4, dtype=torch.float64)
        inputs = (inputs * stretch) @ torch.linalg.qr(torch.randn(4, 4).double())[0]
        seen = observe(model, "", inputs, targets, half_square)[0]
        before = model.weight.detach().clone()
        train(model, optimizer, [(inputs, targets)])
        expected = ekfac_direction(seen, seen.mean_gradient, *factors(seen), damping=0.1)
        torch.testing.assert_close(before - model.weight.detach(), expected)


def test_scalings_are_renewed_between_basis_changes() -> None:
    """Case 21: factors at every step, basis only at the first; scalings follow the data."""
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = EKFAC(
        model,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        norm_control=None,
        damping=Damping(0.1, "both"),
        factor_interval=1,
        inverse_interval=100,
        statistics=Statistics(decay=0.0, rows=None),
    )
    basis = None
    for _ in range(3):
        inputs, targets = data(16, 4, dtype=torch.float64)
        seen = observe(model, "", inputs, targets, half_square)[0]
        basis = factors(seen) if basis is None else basis
        before = model.weight.detach().clone()
        train(model, optimizer, [(inputs, targets)])
        expected = ekfac_direction(seen, seen.mean_gradient, *basis, damping=0.1)
        torch.testing.assert_close(before - model.weight.detach(), expected)
