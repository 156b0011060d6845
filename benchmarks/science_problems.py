"""Equations with known solutions, and photographs: networks, points, residuals, errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

Batch = tuple[Tensor, ...]
_CONDUCTIVITY = 0.25


@dataclass(frozen=True)
class Problem:
    """A fit by squares whose truth is known.

    Attributes:
        network: A fresh network, drawn from torch's own generator.
        draw: Points or pixels, about as many as asked for.
        residuals: Terms, each weighted by the root of its weight.
        error: What is judged, on points of its own; the smaller the better.
        targets: Errors whose times are reported.
        sizes: How many points a step may take: the first few, and all.
        unit: What the error is called.
    """

    network: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Batch]
    residuals: Callable[[nn.Module, Batch], tuple[Tensor, ...]]
    error: Callable[[nn.Module], float]
    targets: tuple[float, ...]
    sizes: tuple[int, int, int]
    unit: str = "relative L2 error"


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _on_border(points: Tensor, stream: torch.Generator) -> Tensor:
    """Moves each point to a side of the cube."""
    count, axes = points.shape
    side = torch.randint(2 * axes, (count,), generator=stream)
    points[torch.arange(count), side // 2] = (side % 2).to(points.dtype)
    return points


def _relative(solution: Callable[[Tensor], Tensor], points: Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def error(net: nn.Module) -> float:
        at = points.to(next(net.parameters()).dtype)
        wanted = solution(at)
        return float((net(at) - wanted).norm() / wanted.norm())

    return error


def _poisson(
    axes: int,
    solution: Callable[[Tensor], Tensor],
    factor: float,
    points: Tensor,
    sizes: tuple[int, int, int],
) -> Problem:
    """∇²u = factor · u inside the cube, u known on its border; weight 100 of the border."""

    def draw(count: int, stream: torch.Generator) -> Batch:
        inside = torch.rand(count, axes, generator=stream)
        return inside, _on_border(torch.rand(count // 4, axes, generator=stream), stream)

    def residuals(net: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        inside, border = batch
        equation = derivatives(net, inside).laplacian - factor * solution(inside)
        return equation, 10 * (net(border) - solution(border))

    return Problem(
        lambda: mlp(axes, 64, 64, 64, 1),
        draw,
        residuals,
        _relative(solution, points),
        (1e-2, 1e-3, 1e-4),
        sizes,
    )


def grid_of(count: int) -> Tensor:
    ticks = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.cartesian_prod(ticks, ticks)


def sines(points: Tensor) -> Tensor:
    return torch.sin(math.pi * points).prod(1, keepdim=True)


def cosines(points: Tensor) -> Tensor:
    return torch.cos(math.pi * points).sum(1, keepdim=True)


def warmth(points: Tensor) -> Tensor:
    time, place = points.split(1, dim=1)
    return torch.exp(-_CONDUCTIVITY * math.pi**2 * time) * torch.sin(math.pi * place)


def _heat() -> Problem:
    """∂u/∂t = κ ∂²u/∂x² from a sine on; 0 at both ends."""

    def draw(count: int, stream: torch.Generator) -> Batch:
        inside, known = (
            torch.rand(count, 2, generator=stream),
            torch.rand(count // 4, 2, generator=stream),
        )
        side = torch.randint(3, (len(known),), generator=stream)  # the start, and two ends
        known[side == 0, 0] = 0.0
        known[side == 1, 1] = 0.0
        known[side == 2, 1] = 1.0
        return inside, known

    def residuals(net: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        inside, known = batch
        u = derivatives(net, inside, second=(0, _CONDUCTIVITY))
        return u.gradient[:, 0] - u.laplacian, 10 * (net(known) - warmth(known))

    return Problem(
        lambda: mlp(2, 64, 64, 64, 1),
        draw,
        residuals,
        _relative(warmth, grid_of(50)),
        (1e-2, 1e-3, 1e-4),
        (128, 256, 900),
    )


class FourierMLP(nn.Module):
    """Sines and cosines of random frequencies, then an MLP with ReLU (Tancik et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10.0 * torch.randn(2, 128))
        self.net = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3),
        )  # fmt: skip

    def forward(self, places: Tensor) -> Tensor:
        angles = 2 * math.pi * places @ self.frequencies
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=-1))


def _image(name: str, side: int = 128) -> Problem:
    """A photograph of scikit-learn's at 128 × 128, all pixels of it; errors are RMS."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415 - takes a second

    image = torch.tensor(load_sample_image(name)).permute(2, 0, 1).unsqueeze(0).double() / 255
    small = functional.interpolate(image, size=(side, side), mode="area")
    colours, places = small[0].permute(1, 2, 0).reshape(-1, 3), grid_of(side)

    def draw(count: int, stream: torch.Generator) -> Batch:
        chosen = torch.randint(len(places), (count,), generator=stream)
        dtype = torch.get_default_dtype()
        return places[chosen].to(dtype), colours[chosen].to(dtype)

    def residuals(net: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return (net(batch[0]) - batch[1],)

    @torch.no_grad()
    def error(net: nn.Module) -> float:
        dtype = next(net.parameters()).dtype
        return float(functional.mse_loss(net(places.to(dtype)), colours.to(dtype)).sqrt())

    return Problem(
        FourierMLP, draw, residuals, error, (1e-2, 3e-3, 1e-3), (1024, 2048, 4096), "RMS error"
    )


def problems() -> dict[str, Callable[[], Problem]]:
    stream = torch.Generator().manual_seed(0)
    cube = torch.rand(4000, 5, generator=stream, dtype=torch.float64)
    return {
        "poisson-2d": lambda: _poisson(2, sines, -2 * math.pi**2, grid_of(50), (128, 256, 900)),
        "poisson-5d": lambda: _poisson(5, cosines, -(math.pi**2), cube, (128, 512, 1000)),
        "heat": _heat,
        "image-flower": lambda: _image("flower.jpg"),
        "image-china": lambda: _image("china.jpg"),
    }
