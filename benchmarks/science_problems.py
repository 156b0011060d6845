"""The equations of the ``thor`` command, and photographs that are fitted exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.tasks.equations import HEAT, POISSON_2D, POISSON_5D, Equation, grid
from thor_bench.tasks.image_fit import FourierMLP

if TYPE_CHECKING:
    from collections.abc import Callable

Batch = tuple[Tensor, ...]


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
        looks: How often a run is judged.
        unit: What the error is called.
        shown: How it is written.
    """

    network: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Batch]
    residuals: Callable[[nn.Module, Batch], tuple[Tensor, ...]]
    error: Callable[[nn.Module], float]
    targets: tuple[float, ...]
    sizes: tuple[int, int, int]
    looks: int = 500
    unit: str = "relative L2 error"
    shown: Callable[[float], str] = "{:.1e}".format


def _equation(one: Equation, sizes: tuple[int, int, int]) -> Problem:
    return Problem(one.network, one.draw, one.residuals, one.error, (1e-2, 1e-3, 1e-4), sizes)


@dataclass(frozen=True)
class Photograph:
    """Each pixel's place ``[N, 2]`` and colour ``[N, 3]``, in float64."""

    places: Tensor
    colours: Tensor

    def draw(self, count: int, stream: torch.Generator) -> Batch:
        """Pixels at random, or all of them in their order."""
        dtype = torch.get_default_dtype()
        if count >= len(self.places):
            return self.places.to(dtype), self.colours.to(dtype)
        chosen = torch.randint(len(self.places), (count,), generator=stream)
        return self.places[chosen].to(dtype), self.colours[chosen].to(dtype)

    @torch.no_grad()
    def error(self, net: nn.Module) -> float:
        """Root mean square over all pixels and colours."""
        dtype = next(net.parameters()).dtype
        found = net(self.places.to(dtype))
        return float(functional.mse_loss(found, self.colours.to(dtype)).sqrt())


def photograph(name: str, side: int = 128) -> Photograph:
    """A photograph of scikit-learn's, made small."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415 - takes a second

    image = torch.tensor(load_sample_image(name)).permute(2, 0, 1).unsqueeze(0).double() / 255
    small = functional.interpolate(image, size=(side, side), mode="area")
    return Photograph(grid(side), small[0].permute(1, 2, 0).reshape(-1, 3))


def _image(name: str) -> Problem:
    picture = photograph(name)
    return Problem(
        FourierMLP,
        picture.draw,
        lambda net, batch: (net(batch[0]) - batch[1],),
        picture.error,
        (1e-2, 1e-3, 1e-4),
        (1024, 4096, len(picture.places)),
        looks=1,  # a look costs as much as some steps
        unit="dB",
        shown=lambda error: f"{-20 * math.log10(error):.1f}",
    )


def problems() -> dict[str, Callable[[], Problem]]:
    """By name; a photograph takes a second."""
    return {
        "poisson-2d": lambda: _equation(POISSON_2D, (128, 256, 900)),
        "poisson-5d": lambda: _equation(POISSON_5D, (128, 512, 1000)),
        "heat": lambda: _equation(HEAT, (128, 256, 900)),
        "image-flower": lambda: _image("flower.jpg"),
        "image-china": lambda: _image("china.jpg"),
    }
