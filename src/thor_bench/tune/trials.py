"""One trial of a study: how it ranks, and how long the rest may take."""

import math
import statistics
import time
from dataclasses import dataclass

from thor_bench.records.reading import Run
from thor_bench.report.summary import reached
from thor_bench.tasks import Metric
from thor_bench.tune.study import Trial


@dataclass(frozen=True)
class Finished:
    """A trial that has ended.

    Attributes:
        trial: What was asked for.
        run: Its records.
        repeats: Those of the same settings under further seeds, of a finalist.
    """

    trial: Trial
    run: Run
    repeats: tuple[Run, ...] = ()

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""
        return self.trial.config.optimizer

    def rank(self, metric: Metric, target: float) -> tuple[float, float, float]:
        """Orders trials, best first: seeds that missed, median time to the target, best value."""
        runs = (self.run, *self.repeats)
        seconds = [reached(run, metric, target).seconds for run in runs]
        values = [record.test_metric for run in runs for record in run.evaluations]
        best = metric.best(values) if values else math.inf
        return (
            sum(map(math.isinf, seconds)),
            statistics.median(seconds),
            -best if values and metric.higher_is_better else best,
        )


class Pace:
    """Tells which run is next and about how long all the rest will take.

    Args:
        total: Runs of the whole study.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._made = 0
        self._begun = 0.0

    def start(self, before: int) -> str:
        """Returns ``[number/total]`` of a run that begins now, with the time that is left.

        Args:
            before: Runs that stand on disk.
        """
        now = time.monotonic()
        left = ""
        if self._made:
            minutes = (now - self._begun) / self._made * (self._total - before) / 60
            left = f", {minutes:.0f} min left" if minutes >= 1 else ", 1 min left"
        else:
            self._begun = now
        self._made += 1
        return f"[{before + 1}/{self._total}{left}]"
