"""Solve Poisson's equation by a network: ``python examples/pinn_thor.py``.

The loss holds second derivatives, so no rate of SGD's is known for it; THOR's steps do not depend
on its scale. What a schedule is worth: compare ``--schedule constant`` with ``cosine``.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

from torch_thor import THOR

POINTS, BORDER = 256, 100.0  # points of a step inside and on the border; weight of the border


def solution(points: Tensor) -> Tensor:
    """Returns u = sin πx · sin πy at points ``[N, 2]``: ``[N, 1]``."""
    return (math.pi * points).sin().prod(dim=1, keepdim=True)


def equation(model: nn.Module) -> Tensor:
    """Returns the squared residuals of ∇²u = f inside and of u = 0 on the border."""
    inside = torch.rand(POINTS, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(model(inside).sum(), inside, create_graph=True)
    bends = [
        torch.autograd.grad(slope[:, axis].sum(), inside, create_graph=True)[0][:, axis]
        for axis in range(2)
    ]
    wanted = -2 * math.pi**2 * solution(inside.detach())
    border = torch.rand(POINTS, 2)
    border[torch.arange(POINTS), torch.randint(2, (POINTS,))] = torch.randint(2, (POINTS,)).float()
    residual = sum(bends)[:, None] - wanted
    return residual.square().mean() + BORDER * model(border).square().mean()


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, print the error against the known solution, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--schedule", choices=["cosine", "constant"], default="cosine")
    parser.add_argument("--steps", type=int, default=1000)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003, weight_decay=0)
    falls = said.schedule == "cosine"
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / said.steps)) / 2 if falls else 1.0
    )
    losses = []
    for _ in range(said.steps):
        optimizer.zero_grad()
        loss = equation(model)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())

    ticks = torch.linspace(0, 1, 50)
    grid = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        wanted = solution(grid)
        error = (model(grid) - wanted).norm() / wanted.norm()
    print(f"loss {losses[-1]:.2e}, relative error {error:.2e}")
    return losses


if __name__ == "__main__":
    main()
