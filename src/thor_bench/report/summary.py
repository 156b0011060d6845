"""From runs to the rows of a comparison's table."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from thor_bench.records.reading import Run
from thor_bench.tasks import Metric, find_workload

BASELINE = "sgd"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over seeds; infinite where the target was missed."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of some values; all NaN where there are none."""
        if not values:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One optimizer's row in the table.

    Attributes:
        optimizer: Its name.
        runs: Number of seeds.
        misses: How many of them never reached the target.
        horizon: Epochs of its schedule.
        seconds: Training time to the target.
        steps: Steps to the target.
        epochs: Epochs to the target.
        best_metric: Best value of the metric.
        final_metric: Value at the horizon.
        epoch_seconds: Training time of an epoch.
        peak_memory_mb: Peak memory, MiB.
        wait_percent: Share of the training time in which training waited for batches.
        ratio: Median time to the target over the baseline's; None where the baseline is missing
            or misses.
    """

    optimizer: str
    runs: int
    misses: int
    horizon: float
    seconds: Spread
    steps: Spread
    epochs: Spread
    best_metric: Spread
    final_metric: Spread
    epoch_seconds: Spread
    peak_memory_mb: Spread
    wait_percent: Spread
    ratio: float | None


@dataclass(frozen=True)
class Reached:
    """When a run first was at the target; infinite where it never was."""

    seconds: float = math.inf
    steps: float = math.inf
    epochs: float = math.inf


def reached(run: Run, metric: Metric, target: float) -> Reached:
    """Returns when a run was first evaluated at a target or beyond it.

    Args:
        run: Any run.
        metric: Its workload's metric.
        target: Value of the metric.
    """
    for record in run.evaluations:
        if metric.reaches(record.test_metric, target):
            return Reached(record.seconds, record.step, record.epoch)
    return Reached()


def group_by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sorts runs by optimizer, in the order in which optimizers first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.config.optimizer, []).append(run)
    return groups


def summarize(runs: Sequence[Run], target: float) -> list[Summary]:
    """Returns one row per optimizer.

    Args:
        runs: Runs of one workload, at least one.
        target: Value of its metric that is timed.
    """
    metric = find_workload(runs[0].config.workload).metric
    groups = group_by_optimizer(runs)
    rows = [_summarize_one(name, group, metric, target) for name, group in groups.items()]
    baseline = next((row.seconds.median for row in rows if row.optimizer == BASELINE), math.inf)
    if math.isinf(baseline):
        return rows
    return [replace(row, ratio=row.seconds.median / baseline) for row in rows]


def _summarize_one(name: str, runs: Sequence[Run], metric: Metric, target: float) -> Summary:
    hits = [reached(run, metric, target) for run in runs]
    scores = [[record.test_metric for record in run.evaluations] for run in runs]
    return Summary(
        optimizer=name,
        runs=len(runs),
        misses=sum(math.isinf(one.seconds) for one in hits),
        horizon=runs[0].config.epochs,
        seconds=Spread.of([one.seconds for one in hits]),
        steps=Spread.of([one.steps for one in hits]),
        epochs=Spread.of([one.epochs for one in hits]),
        best_metric=Spread.of([metric.best(values) for values in scores if values]),
        final_metric=Spread.of([values[-1] for values in scores if values]),
        epoch_seconds=Spread.of([e.epoch_seconds for run in runs for e in run.whole_epochs]),
        peak_memory_mb=Spread.of([run.epochs[-1].peak_memory_mb for run in runs if run.epochs]),
        wait_percent=Spread.of(
            [100 * e.wait_seconds / e.epoch_seconds for run in runs for e in run.epochs]
        ),
        ratio=None,
    )
