"""From runs to the rows of a comparison's table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import polars as pl
from pydantic import TypeAdapter

from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.reading import Run
from thor_bench.records.task_card import Measure, number_text
from thor_bench.tasks import card_of

BASELINE = "sgd"


@dataclass(frozen=True)
class Spread:
    """A median over seeds and the range or interval around it; ∞ is a miss, NaN no value."""

    median: float
    low: float = math.nan
    high: float = math.nan

    def text(self, digits: int | None) -> str:
        """Returns ``median (low–high)``, or the median alone where the ends tell nothing more."""
        middle, low, high = (
            number_text(value, digits) for value in (self.median, self.low, self.high)
        )
        return middle if low == high else f"{middle} ({low}–{high})"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One optimizer's row in the table."""

    optimizer: str
    runs: int
    misses: int  # runs that never reached the target
    horizon: float  # epochs of its schedule
    ratio: float | None  # time over the baseline's; None where that is missing, or misses
    seconds: Spread  # to the target, as steps and epochs
    steps: Spread
    epochs: Spread
    best_metric: Spread
    final_metric: Spread  # at the horizon
    epoch_seconds: Spread
    peak_memory_mb: Spread
    wait_percent: Spread  # share of the training time in which training waited for batches


_ROWS = TypeAdapter(list[Summary])
_MEASURES = [field.name for field in fields(Summary) if field.type is Spread]
_PER_EPOCH = ["epoch_seconds", "wait_percent"]


def measured(runs: Sequence[Run], target: float) -> pl.DataFrame:
    """Returns one row a run: when it was at the target first (infinite: never), and what it cost.

    Args:
        runs: Runs of one workload, at least one.
        target: Value of its metric that is timed.
    """
    metric = card_of(runs[0].started).metric
    kinds = {name: pl.List(pl.Float64) if name in _PER_EPOCH else pl.Float64 for name in _MEASURES}
    return pl.DataFrame([_measured(run, metric, target) for run in runs], schema_overrides=kinds)


def _measured(run: Run, metric: Measure, target: float) -> dict[str, object]:
    values = [record.test_metric for record in run.evaluations]
    at = next((r for r in run.evaluations if metric.reaches(r.test_metric, target)), None)
    return {
        "optimizer": run.config.optimizer,
        "horizon": run.config.epochs,
        "seconds": at.seconds if at else math.inf,
        "steps": at.step if at else math.inf,
        "epochs": at.epoch if at else math.inf,
        "best_metric": metric.best(values) if values else None,
        "final_metric": values[-1] if values else None,
        "epoch_seconds": [one.epoch_seconds for one in run.whole_epochs],
        "peak_memory_mb": run.epochs[-1].peak_memory_mb if run.epochs else None,
        "wait_percent": [100 * one.wait_seconds / one.epoch_seconds for one in run.epochs],
    }


def group_by_optimizer(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sorts runs by optimizer, in the order in which optimizers first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.config.optimizer, []).append(run)
    return groups


def summarize(runs: Sequence[Run], target: float) -> list[Summary]:
    """Returns one row per optimizer, in the order in which optimizers first appear.

    Args:
        runs: Runs of one workload, at least one.
        target: Value of its metric that is timed.
    """
    values = {
        name: pl.col(name).explode() if name in _PER_EPOCH else pl.col(name) for name in _MEASURES
    }
    missed = pl.col("seconds").is_infinite()
    rows = measured(runs, target).group_by("optimizer", maintain_order=True).agg(
        pl.col("horizon").first(),
        runs=pl.len(),
        misses=missed.sum(),
        **{name: _spread(value) for name, value in values.items()},
    )  # fmt: skip
    median = pl.col("seconds").struct.field("median")
    baseline = median.filter((pl.col("optimizer") == BASELINE) & median.is_finite()).first()
    return _ROWS.validate_python(rows.with_columns(ratio=median / baseline).to_dicts())


def headline(summaries: Sequence[Summary], goal: str) -> str:
    """Returns the result of a comparison in a sentence or two.

    Args:
        summaries: One optimizer each.
        goal: What was timed, such as "test accuracy 98 %".
    """
    best, *others = sorted(summaries, key=lambda row: row.seconds.median)
    if math.isinf(best.seconds.median):
        some = any(row.misses < row.runs for row in summaries)
        return f"No optimizer reached {goal}{' with most of its seeds' if some else ''}."
    how = "is first at" if others else "reached"
    told = f"{best.optimizer} {how} {goal}: {best.seconds.text(2)} s of training"
    if best.ratio is not None and best.ratio < 1:
        told += f", {best.ratio:.2f} of SGD's time"
    if not others:
        return f"{told}." if best.runs > 1 else f"{told}. One seed says little."
    second = others[0]
    if math.isinf(second.seconds.median):
        who = "the others" if len(others) > 1 else second.optimizer
        some = any(row.misses < row.runs for row in others)
        told += f"; {who} missed it{' with half of the seeds or more' if some else ''}."
    else:
        told += f"; then {second.optimizer}, {second.seconds.text(2)} s."
    if best.runs == 1:
        return f"{told} One seed says little: another may order them otherwise."
    seeds = f"{best.runs} seeds"
    if second.seconds.low <= best.seconds.high:
        return f"{told} Medians of {seeds}, whose ranges overlap: more seeds would be surer."
    return f"{told} Medians of {seeds}, whose ranges do not overlap."


def _spread(values: pl.Expr) -> pl.Expr:
    parts = {"median": values.median(), "low": values.min(), "high": values.max()}
    return pl.struct(part.fill_null(math.nan).alias(name) for name, part in parts.items())


def reached_by_others(runs: Sequence[Run]) -> tuple[float, str]:
    """Returns what is timed where nobody set a target, and the optimizer that sets it.

    It is what the best of the other optimizers than this library's reaches with every seed; of all,
    where there are no others.

    Args:
        runs: Runs of one task; at least one has an evaluation.
    """
    metric = card_of(runs[0].started).metric
    groups = group_by_optimizer([run for run in runs if run.evaluations])
    others = [name for name in groups if not find_optimizer(name).ours] or list(groups)
    reached = {
        name: metric.worst(
            [metric.best([one.test_metric for one in run.evaluations]) for run in groups[name]]
        )
        for name in others
    }
    best = metric.best(list(reached.values()))
    return metric.easier(best), next(name for name in others if reached[name] == best)
