"""Plain tensors: ``thor compare examples/tasks/tensors.py --optimizers thor,muon,adamw``.

The friction of a flow in a pipe, from its Reynolds number and roughness: a table of numbers and an
MLP. There is no metric, so the loss on the test data is taken.
"""

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Task


def loss(model, batch):
    """Mean squared error."""
    inputs, targets = batch
    return functional.mse_loss(model(inputs), targets)


def task():
    """2,000 + 500 flows: friction by Haaland's formula, its logarithm to be told."""
    draws = torch.rand(2500, 2, generator=torch.Generator().manual_seed(0))
    reynolds, roughness = 10 ** (4 + 4 * draws[:, :1]), 10 ** (-5 + 3 * draws[:, 1:])
    root = -1.8 * torch.log10((roughness / 3.7) ** 1.11 + 6.9 / reynolds)
    inputs, targets = 2 * draws - 1, torch.log10(root**-2) + 1.8
    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        ),
        loss=loss,
        train=(inputs[:2000], targets[:2000]),
        test=(inputs[2000:], targets[2000:]),
        batch_size=100,
        epochs=10,
    )
