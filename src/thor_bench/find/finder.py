"""Finds THOR's learning rate for a task, in a tenth of the steps of one run.

Four short runs, at the usual rate, at twice it, and at two rates beyond the better of these, have
the whole run's schedule, squeezed, begin at the same weights with the same batches, and are judged
by the loss of batches that none of them has seen. A short run wants to go far, so that its best
rate is higher than a whole one's: the rate to take is 0.6 of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from thor_bench.errors import BenchError
from thor_bench.find.taken_back import taken_back
from thor_bench.optimizers.learning_rates import factor
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import from_values
from thor_bench.tasks.data import Batch
from thor_bench.training.session import Session
from torch_thor import THOR, CurvatureError, NonFiniteGradientError

SHARE = 0.1  # of a run's steps
_RUNS = 4  # more of them are shorter
_FIRST, _BELOW, _ABOVE = (1.0, 2.0), (0.5, 0.25), (4.0, 8.0)  # times the usual rate
_LEAST_STEPS = 3  # of a short run
_JUDGES = 4  # batches
_PART = 0.6  # of a short run's best rate, to take for a whole one; chosen as docs/bench.md tells


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        rate: Its peak.
        loss: Of unseen batches at its end; infinite where it diverged.
    """

    rate: float
    loss: float


@dataclass(frozen=True)
class Found:
    """What short runs have shown.

    Attributes:
        task: Name of the task.
        usual: What nothing is known with: the default's rate.
        rates: One short run a rate, rising.
        start: Loss of the same batches before any step.
        steps: Of each short run.
        total: Of a whole run.
    """

    task: str
    usual: float
    rates: tuple[Trial, ...]
    start: float
    steps: int
    total: int

    @property
    def best(self) -> Trial:
        """The short run with the lowest loss."""
        return min(self.rates, key=lambda one: one.loss)

    @property
    def rate(self) -> float:
        """The rate to take, to two digits."""
        return float(f"{_PART * self.lowest:.2g}")

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
        """Steps of all short runs."""
        return self.steps * len(self.rates)

    @property
    def is_at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        return self.best in (self.rates[0], self.rates[-1])


def find_settings(session: Session) -> Found:
    """Finds the rate for what a session trains; the session is as before.

    Args:
        session: Of ``THOR`` with steps of a fixed length, as the preset ``defaults`` has it; best
            without ``overshoot``, which changes the rates of short runs on the way.

    Raises:
        BenchError: The run is too short, or another optimizer's, or diverges at every rate.
    """
    finder = _Finder(session)
    budget = int(SHARE * session.total_steps)
    if budget < _LEAST_STEPS * _RUNS:
        least = math.ceil(_LEAST_STEPS * _RUNS / SHARE)
        message = f"the run of {session.total_steps} steps is too short to try rates in a tenth"
        raise BenchError(f"{message}; keep the usual rate, or take --epochs for {least} steps")
    steps = budget // _RUNS
    start = finder.loss_after(steps, None)
    rates = _trials(finder, steps)
    found = Found(session.config.workload, finder.usual, rates, start, steps, session.total_steps)
    if math.isinf(found.best.loss):
        message = f"every rate from {rates[0].rate:g} to {rates[-1].rate:g} diverged"
        raise BenchError(f"{message}; look at the loss and its inputs")
    return found


def _trials(finder: "_Finder", steps: int) -> tuple[Trial, ...]:
    """Returns four short runs, by rising rate."""

    def tried(ratios: tuple[float, ...]) -> list[Trial]:
        rates = [finder.usual * ratio for ratio in ratios]
        return [Trial(rate, finder.loss_after(steps, rate)) for rate in rates]

    usual, double = tried(_FIRST)
    further = tried(_ABOVE if double.loss < usual.loss else _BELOW)
    return tuple(sorted([usual, double, *further], key=lambda one: one.rate))


class _Finder:
    """Short runs of a session."""

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

    def loss_after(self, steps: int, rate: float | None) -> float:
        """Takes steps at a rate, or none, judges them by the batches that follow, takes them back.

        Infinite where they diverged.
        """
        session, groups = self._session, self._optimizer.param_groups
        shape = factor(self._settings, steps_per_epoch=max(steps, 1), epochs=1)
        batches = self._batches()
        with taken_back(session):
            try:
                for number, batch in enumerate(islice(batches, steps)):
                    if rate is None:
                        continue
                    for group in groups:
                        group["lr"] = rate * shape(number)
                    loss = session.loss(batch)
                    if not math.isfinite(loss.item()):
                        return math.inf
                    session.backward(loss)
                    self._optimizer.step()
                judged = [session.loss(batch).item() for batch in islice(batches, _JUDGES)]
            except (CurvatureError, NonFiniteGradientError):
                return math.inf
        mean = sum(judged) / len(judged)
        return mean if math.isfinite(mean) else math.inf

    def _batches(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self._session.data.batches(epoch)
