"""Differential equations whose solutions are known: points, residuals, errors."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thor_bench.tasks.task import Metric
from torch_thor import derivatives

RELATIVE_ERROR = Metric(  # of squares of each point's error ÷ the solution's mean square
    name="relative error", unit="", higher_is_better=False, of_mean=math.sqrt, low=0.0, digits=6
)
Points = tuple[Tensor, Tensor]  # inside, and where values are known
_KNOWN = 4  # points inside for one where the value is known
_ROOT_OF_WEIGHT = 10.0  # of the known values
_CONDUCTIVITY = 0.25
_WIDTH = 64


@dataclass(frozen=True)
class Equation:
    """An equation inside the unit cube, with values that are known on some of its border.

    Attributes:
        axes: Dimensions of the cube.
        solution: What the network has to find: ``[N, axes] -> [N, 1]``.
        equation: ``(network, points) -> [N, 1]``: what is zero inside.
        known: Moves points ``[N, axes]`` to where values are known, in place.
        judged_at: Points of the test, in float64.
    """

    axes: int
    solution: Callable[[Tensor], Tensor]
    equation: Callable[[nn.Module, Tensor], Tensor]
    known: Callable[[Tensor, torch.Generator], Tensor]
    judged_at: Tensor

    def network(self) -> nn.Sequential:
        """Returns a fresh MLP of three hidden layers with tanh."""
        widths = (self.axes, _WIDTH, _WIDTH, _WIDTH, 1)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def draw(self, count: int, stream: torch.Generator) -> Points:
        """Draws as many points inside as asked for, and a quarter as many of known values."""
        inside = torch.rand(count, self.axes, generator=stream)
        known = torch.rand(max(1, count // _KNOWN), self.axes, generator=stream)
        return inside, self.known(known, stream)

    def residuals(self, network: nn.Module, points: Points) -> Points:
        """Returns what should be zero: a term of the equation, and one of known values."""
        inside, known = points
        wrong = network(known) - self.solution(known)
        return self.equation(network, inside), _ROOT_OF_WEIGHT * wrong

    @torch.no_grad()
    def error(self, network: nn.Module) -> float:
        """Returns ‖network − solution‖ ÷ ‖solution‖ at the points of the test."""
        at = self.judged_at.to(next(network.parameters()))
        wanted = self.solution(at)
        return float((network(at) - wanted).norm() / wanted.norm())


def grid(ticks: int) -> Tensor:
    """Returns the points of a square grid, borders included: ``[ticks², 2]`` in float64."""
    along = torch.linspace(0, 1, ticks, dtype=torch.float64)
    return torch.cartesian_prod(along, along)


def sines(points: Tensor) -> Tensor:
    """Returns the product of sin πx over the axes: ``[N, 1]``."""
    return torch.sin(math.pi * points).prod(1, keepdim=True)


def cosines(points: Tensor) -> Tensor:
    """Returns the sum of cos πx over the axes: ``[N, 1]``."""
    return torch.cos(math.pi * points).sum(1, keepdim=True)


def warmth(points: Tensor) -> Tensor:
    """Returns what is left at (t, x) of a sine at t = 0: ``[N, 1]``."""
    time, place = points.split(1, dim=1)
    return torch.exp(-_CONDUCTIVITY * math.pi**2 * time) * torch.sin(math.pi * place)


def _to_border(points: Tensor, stream: torch.Generator) -> Tensor:
    """Moves each point to a side of the cube."""
    count, axes = points.shape
    side = torch.randint(2 * axes, (count,), generator=stream)
    points[torch.arange(count), side // 2] = (side % 2).to(points.dtype)
    return points


def _to_start_or_ends(points: Tensor, stream: torch.Generator) -> Tensor:
    """Moves each point (t, x) to t = 0, or to one of the ends of the rod."""
    side = torch.randint(3, (len(points),), generator=stream)
    points[side == 0, 0] = 0.0
    points[side == 1, 1] = 0.0
    points[side == 2, 1] = 1.0
    return points


def _poisson(solution: Callable[[Tensor], Tensor], factor: float, judged_at: Tensor) -> Equation:
    """∇²u = factor · u, with u on the border."""

    def equation(network: nn.Module, inside: Tensor) -> Tensor:
        return derivatives(network, inside).laplacian - factor * solution(inside)

    return Equation(judged_at.shape[1], solution, equation, _to_border, judged_at)


def _heat(network: nn.Module, inside: Tensor) -> Tensor:
    """∂u/∂t = κ ∂²u/∂x² over (t, x)."""
    u = derivatives(network, inside, second=(0, _CONDUCTIVITY))
    return u.gradient[:, 0] - u.laplacian


_CUBE = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

POISSON_2D = _poisson(sines, -2 * math.pi**2, grid(50))
POISSON_5D = _poisson(cosines, -(math.pi**2), _CUBE)
HEAT = Equation(2, warmth, _heat, _to_start_or_ends, grid(50))
