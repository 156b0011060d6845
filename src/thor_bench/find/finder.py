"""Finds THOR's learning rate for a task, in a tenth of the steps of one run.

The way is a run's beginning at the usual rate. At its end single steps at five rates start from the
same weights, and are judged by the loss of batches that none of them has seen. The rate to take is
three times that of the best single step, and at most four times the usual one. Where the loss rises
on the way, or rises again, all is done again at a tenth of the usual rate; so it is where the loss
does not fall, and then the way on which it falls holds. A constant in the loss changes nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from statistics import median

from thor_bench.errors import BenchError
from thor_bench.find.taken_back import taken_back
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import from_values
from thor_bench.tasks.data import Batch
from thor_bench.training.session import Session
from torch_thor import THOR, CurvatureError, NonFiniteGradientError

SHARE = 0.1  # of a run's steps
_RATIOS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of single steps' rates to the usual one
_LEAST_WAY = 7  # steps
_JUDGES = 4  # batches
# Chosen on eight tasks, see docs/bench.md.
_TIMES = 3.0  # the rate of the best single step
_MOST = 4.0  # times the way's rate; a run's beginning may want more, the whole seldom does
_LOST = 1 / 3  # of what was gained on the way; what rises by more has risen
_SMOOTH = 3  # batches in a row, whose mean loss tells of the way
_LOWER = 0.1  # times the usual rate: that of another way where it doesn't


@dataclass(frozen=True)
class Trial:
    """A single step.

    Attributes:
        rate: Its rate.
        loss: Of unseen batches after it; infinite where it diverged.
    """

    rate: float
    loss: float


@dataclass(frozen=True)
class Found:
    """What single steps have shown.

    Attributes:
        task: Name of the task.
        usual: What nothing is known with: the default's rate.
        gone: Rate of the way: the usual one, or a tenth of it where that was too high.
        rates: One single step a rate, rising.
        start: Loss of the same batches before it.
        way: Steps before.
        total: Of a whole run.
        first: Loss of the first batch on the way.
        lowest_on_way: Mean loss of some batches in a row, the lowest.
        noise: Median difference of the losses of two batches in a row on the way.
        ways: How many were gone.
    """

    task: str
    usual: float
    gone: float
    rates: tuple[Trial, ...]
    start: float
    way: int
    total: int
    first: float
    lowest_on_way: float
    noise: float
    ways: int = 1

    @property
    def has_learned(self) -> bool:
        """Whether the loss fell on the way by more than noise, and did not rise again."""
        most = _LOST * (self.first - self.lowest_on_way)
        fell = self.start < self.first - self.noise
        return fell and self.start - self.lowest_on_way <= most

    @property
    def has_risen(self) -> bool:
        """Whether the loss rose by more than noise, at once or after it had fallen."""
        most = max(_LOST * (self.first - self.lowest_on_way), self.noise)
        return not self.start - min(self.first, self.lowest_on_way) <= most

    @property
    def gains(self) -> bool:
        """Whether a single step lowered the loss."""
        return self.best.loss < self.start

    @property
    def best(self) -> Trial:
        """The single step with the lowest loss."""
        return min(self.rates, key=lambda one: one.loss)

    @property
    def rate(self) -> float:
        """The rate to take, to two digits; the way's where no step gained."""
        if not self.gains:
            return self.gone
        return float(f"{min(_TIMES * self.lowest, _MOST * self.gone):.2g}")

    @property
    def lowest(self) -> float:
        """The lowest place of the parabola through the best rate and its neighbours."""
        place = self.rates.index(self.best)
        if self.is_at_edge:
            return self.best.rate
        # What got worse than it began is as bad as that.
        low, here, high = (min(one.loss, self.start) for one in self.rates[place - 1 : place + 2])
        bend = low - 2 * here + high
        shift = 0.5 * (low - high) / bend if bend > 0 else 0.0
        return self.best.rate * math.pow(self.rates[1].rate / self.rates[0].rate, shift)

    @property
    def taken(self) -> int:
        """All steps."""
        return (self.way + len(self.rates)) * self.ways

    @property
    def is_at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        return self.best in (self.rates[0], self.rates[-1])


def find_settings(session: Session) -> Found:
    """Finds the rate for what a session trains; the session is as before.

    Args:
        session: Of ``THOR`` with steps of a fixed length, as the preset ``defaults`` has it; best
            without ``overshoot``, which changes the rates on the way.

    Raises:
        BenchError: The run is too short, or another optimizer's, or diverges at the usual rate.
    """
    finder = _Finder(session)
    total, usual = session.total_steps, finder.usual
    way = int(SHARE * total) - len(_RATIOS)
    if way < _LEAST_WAY:
        least = math.ceil((_LEAST_WAY + len(_RATIOS)) / SHARE)
        message = f"the run of {total} steps is too short to try rates in a tenth"
        raise BenchError(f"{message}; keep the usual rate, or take --epochs for {least} steps")
    found = finder.found(way, usual)
    if not found.has_learned:
        slower = finder.found(way, _LOWER * usual)
        found = replace(slower if found.has_risen or slower.has_learned else found, ways=2)
    if math.isinf(found.best.loss):
        message = f"the usual rate {usual:g} and a tenth of it diverged within {way + 1} steps"
        raise BenchError(f"{message}; look at the loss and its inputs")
    return found


class _Finder:
    """Steps of a session, which are taken back."""

    def __init__(self, session: Session) -> None:
        self._session = session
        (self._optimizer,) = session.rule.optimizers
        control = getattr(self._optimizer, "norm_control", None)
        if not isinstance(self._optimizer, THOR) or control is None or not control.fixes_length:
            message = f"--optimizer {session.config.optimizer} has no steps of a fixed length"
            raise BenchError(f"{message}; try thor with --preset defaults")
        kind = type(find_optimizer(session.config.optimizer).settings)
        self._settings = from_values(kind, session.config.settings)

    @property
    def usual(self) -> float:
        """Rate of the session."""
        return float(self._settings.lr)

    def found(self, way: int, rate: float) -> Found:
        """Goes a way at a rate, and tries single steps from its end."""
        tried = [rate * ratio for ratio in _RATIOS]
        noise, lowest, first, start, *losses = self._losses(way, rate, [0.0, *tried])
        rates = tuple(Trial(rate, loss) for rate, loss in zip(tried, losses, strict=True))
        session = self._session
        name, total = session.config.workload, session.total_steps
        return Found(name, self.usual, rate, rates, start, way, total, first, lowest, noise)

    def _losses(self, way: int, gone: float, rates: Sequence[float]) -> list[float]:
        """Returns noise, the lowest loss on a way, the first, and those after steps from its end.

        Infinite where the way or the step diverged; a rate of zero is no step.
        """
        batches = self._batches()
        with taken_back(self._session):
            passed = [
                self._step(one, gone * min(1.0, (number + 1) / (way // 2)))
                for number, one in enumerate(islice(batches, way))
            ]
            if not all(map(math.isfinite, passed)):
                return [math.inf] * (3 + len(rates))
            rows = [passed[n : n + _SMOOTH] for n in range(way - _SMOOTH + 1)]
            lowest = min(sum(row) / len(row) for row in rows)
            noise = median(abs(after - before) for before, after in pairwise(passed))
            batch, *judges = islice(batches, 1 + _JUDGES)
            ends = (self._loss_after(batch, rate, judges) for rate in rates)
            return [noise, lowest, passed[0], *ends]

    def _loss_after(self, batch: Batch, rate: float, judges: Sequence[Batch]) -> float:
        with taken_back(self._session):
            if rate and not math.isfinite(self._step(batch, rate)):
                return math.inf
            mean = sum(self._session.loss(one).item() for one in judges) / len(judges)
            return mean if math.isfinite(mean) else math.inf

    def _step(self, batch: Batch, rate: float) -> float:
        """Takes a step; returns the loss before it, infinite where it was no step."""
        loss = self._session.loss(batch)
        value = loss.item()
        if not math.isfinite(value):
            return math.inf
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        try:
            self._session.backward(loss)
            self._optimizer.step()
        except (CurvatureError, NonFiniteGradientError):
            return math.inf
        return value

    def _batches(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self._session.data.batches(epoch)
