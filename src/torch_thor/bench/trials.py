"""One trial of a study: when its result is settled, how it ranks, how long the rest may take.

A trial ends early where its result is settled: at the target, or when its clock has passed the
time that the best of its optimizer's trials so far (the last of the finalists among them) took.
Neither can change which trial wins, so the rule favours no optimizer.
"""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from torch_thor.bench.records import (
    RECORDS_FILE,
    EvaluationRecord,
    Record,
    RecordWriter,
    Run,
    RunFinished,
    read_run,
)
from torch_thor.bench.study import Trial
from torch_thor.bench.summary import reached
from torch_thor.bench.workloads import Metric


class SettledError(Exception):
    """Carries a trial out of its training loop: its result is known."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Settling:
    """Ends a trial at the evaluation that settles it; see the module.

    Attributes:
        metric: The workload's metric.
        target: Value that is timed.
        limit: Training time after which a trial is out; infinite for none.
    """

    metric: Metric
    target: float
    limit: float

    def observe(self, record: Record) -> None:
        """Judges an evaluation.

        Raises:
            SettledError: The result is settled.
        """
        if not isinstance(record, EvaluationRecord):
            return
        if self.metric.reaches(record.test_metric, self.target):
            raise SettledError("at the target")
        if record.seconds > self.limit:
            raise SettledError("slower than an earlier trial")

    def close(self) -> None:
        """Holds nothing."""


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


def end_early(folder: Path, metric: Metric, why: str) -> None:
    """Writes the last record of a trial that was ended before its horizon."""
    run = read_run(folder)
    last = run.evaluations[-1]
    finished = RunFinished(
        step=last.step,
        seconds=last.seconds,
        best_metric=metric.best([record.test_metric for record in run.evaluations]),
        final_metric=last.test_metric,
        ended=why,
    )
    with RecordWriter(folder, keep_bytes=(folder / RECORDS_FILE).stat().st_size) as writer:
        writer.observe(finished)
