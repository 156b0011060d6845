"""Promise: under a running average, EKFAC's scalings never outlive the basis they belong to."""

from __future__ import annotations

import torch
from torch import nn

from helpers import data, half_square, train
from oracle import observe
from torch_thor import EKFAC, Damping, Statistics
from torch_thor.curvature.eigenbasis import EigenBasis


def test_a_new_basis_begins_from_its_own_eigenvalues() -> None:
    """Case 21: share kept · eigenvalue products + the rest · second moments, in the new basis."""
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = EKFAC(
        model,
        lr=0.1,
        norm_control=None,
        damping=Damping(0.1, "both"),
        factor_interval=1,
        inverse_interval=1,
        statistics=Statistics(decay=0.7, rows=None),
    )
    for step in range(4):
        stretch = torch.ones(4, dtype=torch.float64)
        stretch[step] = 10.0  # the order of the eigenvalues changes from step to step
        inputs, targets = data(16, 4, dtype=torch.float64)
        inputs = (inputs * stretch) @ torch.linalg.qr(torch.randn(4, 4).double())[0]
        seen = observe(model, "", inputs, targets, half_square)[0]
        train(model, optimizer, [(inputs, targets)])
        (stack,) = optimizer.engine.stacks
        A, G = stack.a.blocks[0, 0, 0], stack.g.blocks[0, 0, 0]
        Q_A, Q_G = stack.inverses.a[0, 0, 0], stack.inverses.g[0, 0, 0]
        values_a, values_g = (Q_A.T @ A @ Q_A).diagonal(), (Q_G.T @ G @ Q_G).diagonal()
        moments = torch.zeros(3, 4, dtype=torch.float64)
        for gradient in seen.weight_gradients:
            moments += (Q_G.T @ gradient @ Q_A) ** 2 / len(seen.weight_gradients)
        kept = stack.keep(0)
        expected = kept * torch.outer(values_g, values_a) + (1 - kept) * moments
        assert isinstance(stack.inverses, EigenBasis)
        torch.testing.assert_close(stack.inverses.scalings[0, 0], expected)
