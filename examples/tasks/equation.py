"""An equation: ``thor compare examples/tasks/equation.py --optimizers gauss-newton,lbfgs,adamw``.

∇²u − u³ = f inside the unit square and u = 0 around it, with f such that u = sin πx · sin πy. The
loss is a sum of squares, and ``Squares`` says of what: ``gauss-newton`` steps by the residuals,
all others by the loss.
"""

import math

import torch
from torch import nn

from thor_bench import Metric, Squares, Task
from torch_thor import derivatives


def solution(points):
    """What is to be found."""
    return torch.sin(math.pi * points).prod(1, keepdim=True)


def residuals(model, batch):
    """What should be zero, inside and around; a factor of 10 is a weight of 100."""
    inside, around = batch
    u, wanted = derivatives(model, inside), solution(inside)
    source = -2 * math.pi**2 * wanted - wanted**3
    return u.laplacian - u.value**3 - source, 10 * model(around)


def error(model, points):
    """Squared error relative to the solution's mean square, a number for each point."""
    return (model(points) - solution(points)).square().squeeze(1) / 0.25


def batches():
    """New points for each step."""
    for _ in range(50):
        inside, around = torch.rand(128, 2), torch.rand(32, 2)
        around[torch.arange(32), torch.arange(32) % 2] = (torch.arange(32) % 4 // 2).float()
        yield inside, around


def task():
    """Batches have no number of samples to choose, so the run counts steps: 50 an epoch."""
    return Task(
        model=lambda: nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        ),
        loss=Squares(residuals),
        train=batches,
        test=torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)),
        metric=Metric(name="relative error", score=error, of_mean=math.sqrt,
                      higher_is_better=False),
        steps_per_epoch=50,
        epochs=2,
    )  # fmt: skip
