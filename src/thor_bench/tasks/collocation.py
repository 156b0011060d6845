"""Networks that solve differential equations: new points for each step, the solution for tests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import Batch, TensorSplit, TrainTest, random_stream
from thor_bench.tasks.equations import HEAT, POISSON_2D, POISSON_5D, RELATIVE_ERROR, Equation
from thor_bench.tasks.squares import Squares
from thor_bench.tasks.task import Task

_EPOCH = 6400  # points inside


@dataclass(frozen=True)
class DrawnPoints:
    """Points of an equation, drawn by seed, epoch and number of the batch."""

    equation: Equation

    test_batch: ClassVar[int] = 2500

    def __len__(self) -> int:
        """Returns the number of points inside that make an epoch."""
        return _EPOCH

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches, see ``Split``."""
        del pin  # for workers
        for number, samples in picks.items():
            points = self.equation.draw(len(samples), random_stream(*seed, number))
            yield tuple(_share(one, part, len(samples)) for one in points)


def _share(points: Tensor, part: slice, whole: int) -> Tensor:
    """Returns the part of some points that a slice is of a whole."""
    start, stop, _ = part.indices(whole)
    return points[start * len(points) // whole : stop * len(points) // whole]


@dataclass(frozen=True)
class _Solved:
    """What a task asks of an equation."""

    equation: Equation

    def load(self, _source: DataSource) -> TrainTest[Any]:
        at, dtype = self.equation.judged_at, torch.get_default_dtype()
        found = TensorSplit(at.to(dtype), self.equation.solution(at).to(dtype))
        return TrainTest(DrawnPoints(self.equation), found)

    def relative_square(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Each point's squared error ÷ the solution's mean square at all points: ``[N]``."""
        points, wanted = batch
        size = self.equation.solution(self.equation.judged_at).square().mean()
        found: Tensor = (model(points) - wanted).square().squeeze(1) / float(size)
        return found


def _task(name: str, description: str, equation: Equation, *, target: float) -> Task:
    solved = _Solved(equation)
    return Task(
        name=name,
        description=f"{description}, MLP of 3 × 64, tanh",
        input_summary="new points each step, inside and a quarter as many of known values",
        load=solved.load,
        model=equation.network,
        loss=Squares(equation.residuals),
        metric=replace(RELATIVE_ERROR, score=solved.relative_square),
        target=target,
        epochs=160,
        batch_size=256,
    )


POISSON_SQUARE = _task("poisson-2d", "Poisson's equation on a square", POISSON_2D, target=1e-3)
POISSON_CUBE = _task("poisson-5d", "Poisson's equation in five dimensions", POISSON_5D, target=1e-2)
HEAT_ROD = _task("heat", "heat in a rod over time", HEAT, target=1e-3)
