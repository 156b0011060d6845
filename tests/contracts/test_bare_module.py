"""Promise: a single layer is a model too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import data, train
from torch_thor import EKFAC, KFAC, THOR, Treatment


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
def test_a_bare_linear_trains_and_resumes(kind: type[THOR]) -> None:
    """Case 11."""
    model = nn.Linear(5, 3)
    optimizer = kind(model, lr=0.1)
    inputs, targets = data(32)
    weight = next(iter(optimizer.coverage()))
    assert weight.treatment is Treatment.PRECONDITIONED
    losses = train(model, optimizer, [(inputs, targets)] * 20)
    assert all(optimizer.engine.stacks[0].ready)
    assert losses[-1] < losses[0]
    twin = nn.Linear(5, 3)
    twin.load_state_dict(model.state_dict())
    second = kind(twin, lr=0.1)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, [(inputs, targets)] * 3)
    train(twin, second, [(inputs, targets)] * 3)
    assert torch.equal(model.weight, twin.weight)
