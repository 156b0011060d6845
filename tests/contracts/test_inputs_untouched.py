"""Promise: the optimizer never changes a user's inputs or their ``requires_grad``."""

from __future__ import annotations

import torch
from torch import nn

from helpers import data, mean_half_square, mlp, weights
from torch_thor import THOR, Treatment


def test_an_embedding_with_integer_inputs_comes_first() -> None:
    """Case 8."""
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    tokens, targets = torch.randint(9, (8, 3)), torch.randn(8, 3)
    (before,) = weights(model[0])
    for _ in range(2):
        optimizer.zero_grad()
        mean_half_square(model(tokens), targets).backward()
        optimizer.step()
    assert not tokens.requires_grad
    assert not torch.equal(weights(model[0])[0], before)
    assert {e.name: e.treatment for e in optimizer.coverage()}["2.weight"] is (
        Treatment.PRECONDITIONED
    )


def test_float_inputs_keep_their_values_and_need_no_gradient() -> None:
    """Case 8."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    inputs, targets = data(8)
    before = inputs.clone()
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    assert not inputs.requires_grad
    assert inputs.grad is None
    assert torch.equal(inputs, before)
