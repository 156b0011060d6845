"""What a run's records say of its task, so that they can be read where the task is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIGITS = 4  # that count, where nobody says how many stand after the point


def number_text(value: float, digits: int | None) -> str:
    """Returns a number for a table: ``∞`` where it is infinite, ``–`` where there is none.

    Args:
        value: The number.
        digits: Digits after the point; None: four that count.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.{_DIGITS}g}" if digits is None else f"{value:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that judges a model: its name, its direction, how it is written.

    Attributes:
        name: Name in tables and figures.
        higher_is_better: Direction of improvement.
        unit: Unit after a value, such as ``%``; may be empty.
        low: Smallest value that there is; None where there is no limit.
        high: Largest one.
        digits: Digits after the point in tables; None: four that count.
    """

    name: str
    higher_is_better: bool
    unit: str = ""
    low: float | None = None
    high: float | None = None
    digits: int | None = None

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
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value, infinite where there is no limit."""
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high

    def easier(self, value: float) -> float:
        """Returns a value cut to the metric's digits, towards the side that is easier to reach."""
        cut = math.floor if self.higher_is_better else math.ceil
        digits = self.digits
        if digits is None:
            digits = _DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
        scale: float = 10.0**digits
        return cut(round(value * scale, 6)) / scale

    @property
    def perfect(self) -> float:
        """The best value that there is, infinite where there is no limit."""
        return self.range[self.higher_is_better]

    def goal(self, target: float) -> str:
        """Returns a target as short as it can be written, with its unit."""
        return f"{target:g} {self.unit}".rstrip()

    def format(self, value: float) -> str:
        """Returns the value with its digits and unit."""
        return f"{number_text(value, self.digits)} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """A task in words: what tables, figures and pages say of it.

    Attributes:
        name: Its name, or its file, as on the command line.
        description: One line.
        input_summary: Data and shapes, one line.
        metric: What the test data are judged by.
        target: Value of the metric that a comparison times; None where nobody set one.
    """

    name: str
    description: str
    input_summary: str
    metric: Measure
    target: float | None
