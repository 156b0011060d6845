"""Runs that end before their horizon because their result is settled.

A run that was made for its time to a target ends there where that is asked for. A trial of a study
also ends when its clock has passed the time that the best of its optimizer's trials so far (the
last of the finalists among them) took. Neither can change a time or a winner, so the rule favours
no optimizer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import read_run
from thor_bench.records.records import (
    RECORDS_FILE,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunFinished,
)
from thor_bench.tasks import Metric, find_workload
from thor_bench.training import rundir
from thor_bench.training.observers import Observer
from thor_bench.training.train import train


class SettledError(Exception):
    """Carries a run out of its training loop: its result is known."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Settling:
    """Ends a run at the evaluation that settles it; see the module.

    Attributes:
        metric: The workload's metric.
        target: Value that is timed.
        limit: Training time after which a trial is out.
    """

    metric: Metric
    target: float
    limit: float = math.inf

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


def train_until(
    config: RunConfig,
    folder: Path,
    *,
    source: DataSource,
    observers: Sequence[Observer],
    settling: Settling | None,
) -> None:
    """Trains a run, or goes on with it, to its horizon or to where it is settled.

    Args:
        config: The run.
        folder: Its folder.
        source: Where data may be found.
        observers: Receive its records.
        settling: What ends it early, or None.

    Raises:
        BenchError: It cannot be made, diverged or was interrupted.
    """
    ending = () if settling is None else (settling,)
    try:
        train(
            config,
            folder,
            source=source,
            observers=(*observers, *ending),
            resume=rundir.has_run(folder),
        )
    except SettledError as settled:
        _end_early(folder, find_workload(config.workload).metric, settled.why)


def _end_early(folder: Path, metric: Metric, why: str) -> None:
    """Writes the last record of a run that was ended before its horizon."""
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
