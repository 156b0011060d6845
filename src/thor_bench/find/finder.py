"""Finds THOR's learning rate and damping for a task, in a tenth of the steps of one run.

Steps of the default have a fixed length, so that a run goes at most as far as its rate times its
steps. A short run therefore wants a higher rate: at ``(N / n) ** (1 / 4)`` times the rate of a run
of N steps, n steps stand for N. All short runs have the whole run's schedule, squeezed,
begin at the same weights with the same batches, and are judged by the loss of batches that none of
them has seen. They say less than a whole run, so that the rate to take is half way, in
logarithms, from the usual one to theirs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
_EXPONENT = 1 / 4  # measured on five tasks, see docs/bench.md
_RATES = tuple(2.0**power for power in range(-4, 4))  # times the usual one
_FEWER_RATES = _RATES[2:]
_DAMPINGS = (0.1, 10.0)  # times the usual one
_LEAST_STEPS = 2  # of a short run
_STEPS_FOR_DAMPING = 8  # the same where λ is tried too, of which fewer show nothing
_JUDGES = 4  # batches
_CLEARLY = 0.1  # of what the best short run gained: what another λ has to gain more


@dataclass(frozen=True)
class Trial:
    """A short run.

    Attributes:
        rate: Of the whole run that it stands for.
        damping: λ.
        loss: Of unseen batches at its end; infinite where it diverged.
    """

    rate: float
    damping: float
    loss: float


@dataclass(frozen=True)
class Found:
    """What short runs have shown.

    Attributes:
        task: Name of the task.
        usual: What nothing is known with: rate and λ of the defaults.
        rates: One short run a rate, rising.
        dampings: One short run a damping, at the best rate; empty where there are too few steps.
        start: Loss of the same batches before any step.
        steps: Of each short run.
        total: Of a whole run.
    """

    task: str
    usual: tuple[float, float]
    rates: tuple[Trial, ...]
    dampings: tuple[Trial, ...]
    start: float
    steps: int
    total: int

    @property
    def best(self) -> Trial:
        """The short run with the lowest loss of all rates."""
        return min(self.rates, key=lambda one: one.loss)

    @property
    def rate(self) -> float:
        """The rate to take, to two digits."""
        return float(f"{math.sqrt(self.usual[0] * self.lowest):.2g}")

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
    def damping(self) -> float:
        """The damping to take: the usual one, unless another is clearly better."""
        clear = self.best.loss - _CLEARLY * max(0.0, self.start - self.best.loss)
        other = min(self.dampings, key=lambda one: one.loss, default=None)
        return other.damping if other is not None and other.loss < clear else self.usual[1]

    @property
    def taken(self) -> int:
        """Steps of all short runs."""
        return self.steps * (len(self.rates) + len(self.dampings))

    @property
    def is_at_edge(self) -> bool:
        """Whether a rate outside those that were tried may be better."""
        return self.best in (self.rates[0], self.rates[-1])


def find_settings(session: Session) -> Found:
    """Finds rate and damping for what a session trains; the session is as before.

    Args:
        session: Of ``THOR`` with steps of a fixed length, as the preset ``defaults`` has it; best
            without ``overshoot``, which changes the rates of short runs on the way.

    Raises:
        BenchError: The run is too short, or another optimizer's, or diverges at every rate.
    """
    finder = _Finder(session)
    budget = int(SHARE * session.total_steps)
    if budget < _LEAST_STEPS * len(_FEWER_RATES):
        least = math.ceil(_LEAST_STEPS * len(_FEWER_RATES) / SHARE)
        message = f"the run of {session.total_steps} steps is too short to try rates in a tenth"
        raise BenchError(f"{message}; keep the usual rate, or take --epochs for {least} steps")
    ratios = _RATES if budget >= _LEAST_STEPS * len(_RATES) else _FEWER_RATES
    all_runs = len(ratios) + len(_DAMPINGS)
    more = _DAMPINGS if budget >= _STEPS_FOR_DAMPING * all_runs else ()
    steps = budget // (len(ratios) + len(more))
    usual = finder.usual
    start = finder.loss_after(steps, None, usual[1])
    rates = [finder.trial(steps, usual[0] * ratio, usual[1]) for ratio in ratios]
    found = Found(
        session.config.workload, usual, tuple(rates), (), start, steps, session.total_steps
    )
    if math.isinf(found.best.loss):
        message = f"every rate from {rates[0].rate:g} to {rates[-1].rate:g} diverged"
        raise BenchError(f"{message}; look at the loss and its inputs")
    dampings = [finder.trial(steps, found.best.rate, usual[1] * ratio) for ratio in more]
    return replace(found, dampings=tuple(dampings))


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
    def usual(self) -> tuple[float, float]:
        """Rate and damping of the session."""
        return float(self._settings.lr), float(self._optimizer.param_groups[0]["damping"])

    def trial(self, steps: int, rate: float, damping: float) -> Trial:
        """A short run for a whole one's rate."""
        higher = (self._session.total_steps / steps) ** _EXPONENT
        return Trial(rate, damping, self.loss_after(steps, rate * higher, damping))

    def loss_after(self, steps: int, rate: float | None, damping: float) -> float:
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
                        group["lr"], group["damping"] = rate * shape(number), damping
                    session.rule.zero_grad()
                    session.loss(batch).backward()
                    self._optimizer.step()
                judged = [session.loss(batch).item() for batch in islice(batches, _JUDGES)]
            except (CurvatureError, NonFiniteGradientError):
                return math.inf
        loss = sum(judged) / len(judged)
        return loss if math.isfinite(loss) else math.inf

    def _batches(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self._session.data.batches(epoch)
