"""Runs that are trained unless they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from thor_bench.errors import RunDivergedError
from thor_bench.records.reading import Run, read_run
from thor_bench.records.records import RunFinished
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.rundir import has_run, is_pending
from thor_bench.training.train import train

if TYPE_CHECKING:
    from pathlib import Path

    from thor_bench.records.config import RunConfig
    from thor_bench.tasks import Task


def kept(config: RunConfig, directory: Path) -> Run:
    """Returns a run, which is trained unless it is there; one that diverges is told."""
    if is_pending(config, directory):
        try:
            train(config, directory, overwrite=has_run(directory))
        except RunDivergedError as error:
            Console(stderr=True).print(str(error), markup=False, emoji=False)
        (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
    return read_run(directory)


def final(task: Task, run: Run) -> float:
    """Returns the metric at the end of a run; one that failed has the worst."""
    if isinstance(run.end, RunFinished):
        return run.end.final_metric
    return task.metric.worst(task.metric.range)
