"""Learning rates over a run: factors of the peak that torch's LambdaLR multiplies in."""

from collections.abc import Callable
from dataclasses import dataclass

from thor_bench.optimizers.settings import Settings
from thor_bench.records.config import steps_until
from torch_thor import PolynomialDecay, WarmupPolynomialDecay

Factor = Callable[[int], float]


@dataclass(frozen=True)
class Triangle:
    """Factor of the learning rate: linear from 0 to 1, then back to 0 at the horizon or level.

    Attributes:
        total: Steps until the horizon.
        warmup: Share of them over which the factor rises.
        falls: Whether it comes back to 0; else it stays at 1.
    """

    total: int
    warmup: float
    falls: bool = True

    def __call__(self, step: int) -> float:
        """Returns the factor for the step after ``step`` others; never 0 within the horizon."""
        peak = self.warmup * self.total
        if step + 1 < peak:
            return (step + 1) / peak
        if not self.falls:
            return 1.0
        return max(0.0, (self.total - step) / (self.total - max(peak - 1, 0)))


def factor(settings: Settings, *, steps_per_epoch: int, epochs: float) -> Factor:
    """Returns the factor of the learning rate, by step, over a horizon in epochs."""
    peak, total = settings.lr, steps_until(epochs, steps_per_epoch)
    if settings.schedule != "polynomial":
        return Triangle(total, settings.warmup, falls=settings.schedule == "triangle")
    end = float(epochs) if settings.end_epoch is None else settings.end_epoch
    decay: Factor = PolynomialDecay(peak, end, settings.lr_power, steps_per_epoch)
    if settings.warmup_epochs:
        decay = WarmupPolynomialDecay(
            start=settings.warmup_lr,
            target=peak,
            warmup_epochs=settings.warmup_epochs,
            end_epoch=end,
            power=settings.lr_power,
            steps_per_epoch=steps_per_epoch,
        )
    return lambda step: decay(step) / peak
