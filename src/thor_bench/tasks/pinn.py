"""Poisson's equation on the unit square as most scripts have it: ∇²u = f inside, u = 0 around.

Derivatives come from ``torch.autograd.grad``, so hooks see a layer's calls alone; ``poisson-2d``
has the same equation by ``torch_thor.derivatives``, with residuals for ``gauss-newton``.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.equations import RELATIVE_ERROR, grid, sines
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.task import Task

_POINTS, _GRID, _WIDTH = 76_800, 50, 64
_BORDER = 100.0  # weight of the border's error


def load(_source: DataSource) -> TrainTest[TensorSplit]:
    """Draws points inside and on the border; the test is a grid where the solution is known."""
    stream = torch.Generator().manual_seed(0)
    inside, border = torch.rand(2, _POINTS, 2, generator=stream)
    side = torch.randint(2, (2, _POINTS), generator=stream)
    border[torch.arange(_POINTS), side[0]] = side[1].float()
    wanted = torch.cat([-2 * math.pi**2 * sines(inside), torch.zeros(_POINTS, 1)], dim=1)
    at = grid(_GRID).float()
    return TrainTest(
        TensorSplit(torch.cat([inside, border], dim=1), wanted), TensorSplit(at, sines(at))
    )


class Field(nn.Module):
    """An MLP with tanh; in training it tells the equation's left side in the place of u."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh(),
            nn.Linear(_WIDTH, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 1),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps points ``[N, 2]`` to u, ``[N, 1]``.

        In training, points inside and on the border ``[N, 4]`` to ∇²u and u there, ``[N, 2]``.
        """
        if not self.training:
            values: Tensor = self.net(inputs)
            return values
        inside = inputs[:, :2].detach().requires_grad_()
        u, border = self.net(torch.cat([inside, inputs[:, 2:]])).chunk(2)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        bends = [
            torch.autograd.grad(slope[:, axis].sum(), inside, create_graph=True)[0][:, axis]
            for axis in range(2)
        ]
        return torch.cat([torch.stack(bends, dim=1).sum(dim=1, keepdim=True), border], dim=1)


def residual(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the equation and, times 100, of the border; in the test, of u."""
    errors = (outputs - targets).square().mean(dim=0)
    return errors[0] + _BORDER * errors[1:].sum()


def relative_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns each point's squared error ÷ the solution's mean square on the grid: ``[N]``."""
    mean_square = ((_GRID - 1) / (2 * _GRID)) ** 2  # of sin² at as many ticks, both ends zero
    return (outputs - targets).square().squeeze(1) / mean_square


_POINTWISE = Pairs(residual, relative_square)

PINN = Task(
    name="pinn",
    description="Poisson's equation on a square, physics-informed MLP of 3 × 64, tanh",
    input_summary="76,800 points inside and on the border; test on 50 × 50, the solution known",
    load=load,
    model=Field,
    loss=_POINTWISE.loss,
    metric=replace(RELATIVE_ERROR, score=_POINTWISE.judge, high=1.0, digits=5),
    target=0.006,
    epochs=5,
    batch_size=256,
)
