"""``python benchmarks/science_figures.py``: what is found, and its error.

Writes a figure of each equation, by ``GaussNewton``, and one of a photograph, by ``THOR``, to
docs/results/science.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from science_contestants import THOR_INVERSE
from science_problems import photograph, problems
from thor_bench.tasks.equations import cosines, grid, sines, warmth
from torch_thor import GaussNewton

# Solution, how a plane lies in the cube, and the plane's axes.
PLANES = {
    "poisson-2d": (sines, 2, ("x", "y")),
    "heat": (warmth, 2, ("t", "x")),
    "poisson-5d": (cosines, 5, ("$x_1$", "$x_2$")),  # the others 1/2
}
_TICKS = 101


def plane(axes: int) -> Tensor:
    points = torch.full((_TICKS**2, axes), 0.5, dtype=torch.float64)
    points[:, :2] = grid(_TICKS)
    return points


def draw(name: str, steps: int, out: Path) -> None:
    solution, axes, labels = PLANES[name]
    problem = problems()[name]()
    torch.manual_seed(0)
    net, stream = problem.network(), torch.Generator().manual_seed(1)
    optimizer = GaussNewton(net)
    for _ in range(steps):
        batch = problem.draw(256, stream)
        optimizer.step(lambda batch=batch: problem.residuals(net, batch))
    points = plane(axes)
    with torch.no_grad():
        found, wanted = net(points), solution(points)
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, values, title in (
        (left, found, "the network"),
        (right, (found - wanted).abs(), "its error"),
    ):
        image = axis.imshow(values.view(_TICKS, _TICKS).T, origin="lower", extent=(0, 1, 0, 1))
        figure.colorbar(image, ax=axis)
        axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
    exponent = math.floor(math.log10(problem.error(net)))
    figure.suptitle(f"{name}: relative error {problem.error(net) / 10**exponent:.1f}e{exponent}")
    figure.savefig(out / f"{name}.png", dpi=110)


def draw_photograph(steps: int, out: Path) -> None:
    """A photograph, its fit by the benchmark's THOR with power 1, and ten times the error."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    picture, problem = photograph("flower.jpg"), problems()["image-flower"]()
    net, stream = problem.network(), torch.Generator().manual_seed(1)
    step = THOR_INVERSE(net)
    for number in range(steps):
        batch = problem.draw(problem.sizes[0], stream)
        step(lambda batch=batch: problem.residuals(net, batch), 1 - number / steps)
    with torch.no_grad():
        found = net(picture.places.float())
    error = (found - picture.colours).abs()
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    for axis, values, title in zip(
        figure.subplots(1, 3),
        (picture.colours, found, 10 * error),
        ("the photograph", "the network", "ten times the error"),
        strict=True,
    ):
        side = math.isqrt(len(values))
        axis.imshow(values.clamp(0, 1).view(side, side, 3).double().numpy())
        axis.set(title=title, xticks=[], yticks=[])
    figure.suptitle(f"image-flower: {problem.shown(problem.error(net))} dB after {steps} steps")
    figure.savefig(out / "image-flower.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=[*PLANES, "image-flower"])
    parser.add_argument("--steps", type=int, help="100 of an equation, 450 of a photograph")
    parser.add_argument("--out", type=Path, default=Path("docs/results/science"))
    asked = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.problems:
        if name in PLANES:
            draw(name, asked.steps or 100, asked.out)
        else:
            draw_photograph(asked.steps or 450, asked.out)


if __name__ == "__main__":
    main()
