"""Poisson's equation by a network: ``python examples/pinn.py``, some seconds.

∇²u = f inside the unit square and u = 0 on its border, with f chosen so that u = sin πx · sin πy.
Change ``residuals`` to solve another equation: return what should be zero, a term each.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from torch_thor import GaussNewton, derivatives

STEPS, INSIDE, BORDER = 100, 256, 64


def solution(points: Tensor) -> Tensor:
    """What the network has to find, ``[N, 1]``."""
    return torch.sin(math.pi * points).prod(1, keepdim=True)


def on_border(count: int) -> Tensor:
    """Random points on the four sides, ``[N, 2]``."""
    points, side = torch.rand(count, 2), torch.randint(4, (count,))
    points[torch.arange(count), side // 2] = (side % 2).to(points.dtype)
    return points


def residuals(net: nn.Module, inside: Tensor, border: Tensor) -> tuple[Tensor, Tensor]:
    """The equation's error inside, and the border's; a factor of 10 is a weight of 100."""
    u = derivatives(net, inside)  # u.value, u.gradient [N, axes, 1], u.laplacian
    source = -2 * math.pi**2 * solution(inside)
    return u.laplacian - source, 10 * net(border)


def main() -> None:
    """Draw new points for each step; the same within one."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, 1),
    )  # fmt: skip
    optimizer = GaussNewton(net)
    ticks = torch.linspace(0, 1, 50)
    grid = torch.cartesian_prod(ticks, ticks)
    for step in range(1, STEPS + 1):
        inside, border = torch.rand(INSIDE, 2), on_border(BORDER)
        loss = optimizer.step(partial(residuals, net, inside, border))
        if step % 10 == 0:
            with torch.no_grad():
                error = (net(grid) - solution(grid)).norm() / solution(grid).norm()
            print(f"step {step:3}: loss {loss:.1e}, relative error {error:.1e}")


if __name__ == "__main__":
    main()
