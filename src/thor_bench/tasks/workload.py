"""What a workload is: a model, its data, a loss, a metric and a target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import Split, TrainTest

Likelihood = Literal["categorical", "bernoulli"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What the test set is judged by.

    Attributes:
        name: Name in tables and figures.
        unit: Unit after a value, such as ``%``; may be empty.
        higher_is_better: Direction of improvement.
        score: ``(outputs, targets) -> [samples]``: score of each sample.
        low: Smallest value that a target may have.
        high: Largest one.
        digits: Digits after the point in tables.
        of_mean: The metric as a function of the mean of scores.
    """

    name: str
    unit: str
    higher_is_better: bool
    score: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float
    digits: int = 2
    of_mean: Callable[[float], float] = float

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is at the target or beyond it."""
        return value >= target if self.higher_is_better else value <= target

    def best(self, values: Sequence[float]) -> float:
        """Returns the best of some values."""
        return max(values) if self.higher_is_better else min(values)

    def worst(self, values: Sequence[float]) -> float:
        """Returns the worst of some values."""
        return min(values) if self.higher_is_better else max(values)

    @property
    def perfect(self) -> float:
        """The best value that there is."""
        return self.high if self.higher_is_better else self.low

    def easier(self, value: float) -> float:
        """Returns a value cut to the metric's digits, towards the side that is easier to reach."""
        cut = math.floor if self.higher_is_better else math.ceil
        scale: float = 10.0**self.digits
        return cut(round(value * scale, 6)) / scale

    def goal(self, target: float) -> str:
        """Returns a target as short as it can be written, with its unit."""
        return f"{target:g} {self.unit}".rstrip()

    def format(self, value: float) -> str:
        """Returns the value with its digits and unit."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()


def _percent_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 100 for each sample whose largest output is its class, else 0."""
    return 100.0 * (outputs.argmax(dim=1) == targets).float()


ACCURACY = Metric(
    name="accuracy",
    unit="%",
    higher_is_better=True,
    score=_percent_right,
    low=0.0,
    high=100.0,
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training task with everything fixed but the optimizer.

    Attributes:
        name: Name on the command line.
        description: One line.
        input_summary: Data and shapes, one line.
        load: Reads the data set; raises BenchError where files are missing.
        build_model: Returns a fresh model, its weights drawn from torch's global generator.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch.
        metric: What the test set is judged by.
        target: Value of the metric that a comparison times.
        epochs: Horizon for an optimizer without a tuned one.
        batch_size: Samples per step.
        loss_reduction: What ``loss`` is a mean over: samples, or samples and positions.
        likelihood: What the outputs are the parameters of: classes in the last dimension, or
            chances of single bits.
        autocast: Type for the forward pass under autocast where the device has instructions for
            it, or None for float32.
        memory_format: Layout of images and convolution weights.
    """

    name: str
    description: str
    input_summary: str
    load: Callable[[DataSource], TrainTest[Split]]
    build_model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    target: float
    epochs: int
    batch_size: int
    loss_reduction: Literal["mean", "positions_mean"] = "mean"
    likelihood: Likelihood = "categorical"
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format
