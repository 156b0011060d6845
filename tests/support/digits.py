"""A real task that takes a fraction of a second: scikit-learn's embedded digits, a small MLP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from helpers import draws

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINING = 1500


@dataclass(frozen=True)
class Curve:
    """One run: the mean training loss of each epoch, and how it ended on held-out data."""

    losses: tuple[float, ...]
    final: float
    accuracy: float


@cache
def images() -> tuple[Tensor, Tensor]:
    """1,797 images [64] in [0, 1], shuffled once, and their classes."""
    table, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(table), generator=draws(0))
    return torch.tensor(table, dtype=torch.float64)[order] / 16, torch.tensor(classes)[order]


def train_on_digits(
    build: Callable[[nn.Module], torch.optim.Optimizer], seed: int, epochs: int = 4
) -> Curve:
    """Train a 64-64-64-10 network with batches of 64.

    In float64: 100 steps in float32 make 4 % of another processor's rounding.
    """
    torch.manual_seed(seed)
    inputs, classes = images()
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    ).double()
    optimizer = build(model)
    order = draws(seed)
    losses = []
    for _ in range(epochs):
        epoch = []
        for index in torch.split(torch.randperm(TRAINING, generator=order), 64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[index]), classes[index])
            loss.backward()
            optimizer.step()
            epoch.append(loss.item())
        losses.append(sum(epoch) / len(epoch))
    with torch.no_grad():
        outputs = model(inputs[TRAINING:])
    held_out = classes[TRAINING:]
    return Curve(
        tuple(losses),
        nn.functional.cross_entropy(outputs, held_out).item(),
        (outputs.argmax(1) == held_out).float().mean().item(),
    )
