"""Schedules: pure functions from the step counter to a value.

Every schedule is a frozen dataclass that is called with the step (an int that
starts at 0) and returns a float, so that it can be compared, printed and
written into a configuration. A plain callable works everywhere a schedule does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from torch_thor.options.checks import AT_LEAST_ONE, POSITIVE, Checked, require_type
from torch_thor.options.errors import require

Schedule: TypeAlias = Callable[[int], float]
ScheduledFloat: TypeAlias = float | Schedule


def value_at(value: ScheduledFloat, step: int, name: str = "schedule") -> float:
    """Returns the number itself, or what the schedule gives at ``step``.

    Raises:
        InvalidOptionError: Where that is no number; ``name`` says what it is for.
    """
    if not callable(value):
        return float(value)
    found = value(step)
    require_type(f"{name} at step {step}", found, float)
    return float(found)


@dataclass(frozen=True)
class Constant(Checked):
    """The same value at every step.

    Args:
        value: The value.
    """

    value: float

    def __call__(self, step: int) -> float:  # noqa: ARG002 (a schedule takes the step)
        """Returns the value at ``step``."""
        return self.value


@dataclass(frozen=True)
class PolynomialDecay(Checked):
    """Learning rate of the paper, eq. 13: ``target * (1 - e / end_epoch) ** power``.

    Args:
        target: Value at epoch 0.
        end_epoch: Epoch at which the value reaches zero; it stays zero after it.
        power: Exponent p of the decay.
        steps_per_epoch: Steps in one epoch; the epoch e is fractional.
    """

    target: float
    end_epoch: Annotated[float, POSITIVE]
    power: float
    steps_per_epoch: Annotated[float, AT_LEAST_ONE]

    def __call__(self, step: int) -> float:
        """Returns the value at ``step``."""
        return self.at_epoch(step / self.steps_per_epoch)

    def at_epoch(self, epoch: float) -> float:
        """Returns the value at a fractional epoch."""
        remaining = max(0.0, 1.0 - epoch / self.end_epoch)
        return float(self.target * remaining**self.power)


@dataclass(frozen=True)
class WarmupPolynomialDecay(Checked):
    """Learning rate of the paper for large batches, eq. 14.

    Linear from ``start`` to ``target`` until ``warmup_epochs``, then
    ``target * (1 - (e - warmup_epochs) / end_epoch) ** power``.

    Args:
        start: Value at epoch 0.
        target: Value at the end of the warm-up.
        warmup_epochs: Length of the warm-up in epochs.
        end_epoch: Length of the decay in epochs, counted from the end of the warm-up.
        power: Exponent p of the decay.
        steps_per_epoch: Steps in one epoch; the epoch e is fractional.
    """

    start: float
    target: float
    warmup_epochs: Annotated[float, POSITIVE]
    end_epoch: Annotated[float, POSITIVE]
    power: float
    steps_per_epoch: Annotated[float, AT_LEAST_ONE]

    def __call__(self, step: int) -> float:
        """Returns the value at ``step``."""
        epoch = step / self.steps_per_epoch
        if epoch <= self.warmup_epochs:
            return self.start + (self.target - self.start) / self.warmup_epochs * epoch
        decay = PolynomialDecay(self.target, self.end_epoch, self.power, self.steps_per_epoch)
        return decay.at_epoch(epoch - self.warmup_epochs)


@dataclass(frozen=True)
class ExponentialDamping(Checked):
    """Damping of the paper, eq. 15: ``initial * rate ** (e / 10)``.

    Args:
        initial: Value at epoch 0.
        rate: Factor ρ by which the value changes every ten epochs.
        steps_per_epoch: Steps in one epoch; the epoch e is fractional.
    """

    initial: float
    rate: Annotated[float, POSITIVE]
    steps_per_epoch: Annotated[float, AT_LEAST_ONE]

    def __call__(self, step: int) -> float:
        """Returns the value at ``step``."""
        return float(self.initial * self.rate ** (step / self.steps_per_epoch / 10))


@dataclass(frozen=True)
class GrowingInterval(Checked):
    """An update interval that grows geometrically from refresh to refresh.

    Refreshes at 0, T, T + gT, T + gT + g²T, … lie where the interval at step k
    is ``T + (g - 1) k``: the growth by a factor per refresh is linear in the step,
    so no count of refreshes has to be kept.

    Args:
        start: First interval T in steps.
        growth: Factor g from one interval to the next; 1 keeps it fixed.
        maximum: Longest interval in steps.
    """

    start: Annotated[float, AT_LEAST_ONE] = 20.0
    growth: Annotated[float, AT_LEAST_ONE] = 1.2
    maximum: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        require("maximum", self.maximum, self.maximum >= self.start, f">= start ({self.start})")

    def __call__(self, step: int) -> float:
        """Returns the interval that begins at ``step``."""
        return min(self.maximum, self.start + (self.growth - 1.0) * step)


@dataclass(frozen=True)
class Piecewise(Checked):
    """Constant between boundaries: ``values[i]`` from ``boundaries[i - 1]`` on.

    Args:
        boundaries: Increasing steps at which the value changes.
        values: One value more than there are boundaries.
    """

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = len(self.values) == len(self.boundaries) + 1
        allowed = f"one value more than boundaries ({len(self.boundaries)})"
        require("values", self.values, fits, allowed)
        increasing = all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        require("boundaries", self.boundaries, increasing, "strictly increasing steps")

    def __call__(self, step: int) -> float:
        """Returns the value at ``step``."""
        return self.values[sum(step >= boundary for boundary in self.boundaries)]
