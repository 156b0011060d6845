"""Learning rates over a run: factors of the peak that torch's LambdaLR multiplies in."""

from collections.abc import Callable

from thor_bench.optimizers.settings import Settings
from thor_bench.records.config import steps_until
from torch_thor import PolynomialDecay, WarmupPolynomialDecay

Factor = Callable[[int], float]


def factor(settings: Settings, *, steps_per_epoch: int, epochs: float) -> Factor:
    """Returns the factor of the learning rate after so many steps, over a horizon in epochs."""
    if settings.schedule == "polynomial":
        return _polynomial(settings, steps_per_epoch, epochs)
    total, falls = steps_until(epochs, steps_per_epoch), settings.schedule == "triangle"
    peak = settings.warmup * total

    def triangle(step: int) -> float:
        """Linear from 0 to 1, then level or back to 0 at the horizon; never 0 within it."""
        if step + 1 < peak:
            return (step + 1) / peak
        if not falls:
            return 1.0
        return max(0.0, (total - step) / (total - max(peak - 1, 0)))

    return triangle


def _polynomial(settings: Settings, steps_per_epoch: int, epochs: float) -> Factor:
    target = settings.lr
    end = float(epochs) if settings.end_epoch is None else settings.end_epoch
    decay: Factor = PolynomialDecay(target, end, settings.lr_power, steps_per_epoch)
    if settings.warmup_epochs:
        decay = WarmupPolynomialDecay(
            start=settings.warmup_lr,
            target=target,
            warmup_epochs=settings.warmup_epochs,
            end_epoch=end,
            power=settings.lr_power,
            steps_per_epoch=steps_per_epoch,
        )
    return lambda step: decay(step) / target
