"""What a league found, in numbers: places, ratios to the best other, pairs of optimizers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, wilcoxon

from thor_bench.league.plan import target_of
from thor_bench.records.reading import Run
from thor_bench.report.summary import measured

MEASURES = ("seconds", "steps")
SIGNIFICANT = 0.05


def results(runs: Sequence[Run]) -> pl.DataFrame:
    """Returns one row a run: ``task, optimizer, seed, seconds, steps, best_metric``."""
    tasks = list(dict.fromkeys(run.config.workload for run in runs))
    frames = []
    for task in tasks:
        mine = [run for run in runs if run.config.workload == task]
        seeds = pl.Series([run.config.seed for run in mine])
        frames.append(
            measured(mine, target_of(task)).select(
                pl.lit(task).alias("task"), "optimizer", seeds.alias("seed"), *MEASURES,
                "best_metric",
            )
        )  # fmt: skip
    return pl.concat(frames)


def medians(found: pl.DataFrame) -> pl.DataFrame:
    """Returns one row a task and optimizer: medians over seeds, infinite where most missed."""
    by = found.group_by("task", "optimizer", maintain_order=True)
    return by.agg(pl.col(*MEASURES).median())


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One optimizer's row."""

    optimizer: str
    first: dict[str, int]  # tasks on which it is first, by measure; ties count for all
    ratio: dict[str, float]  # median over tasks of its median ÷ the best other's
    missed_tasks: int  # whose target most of its seeds missed
    missed: int  # seeds, over all tasks
    runs: int


def standings(found: pl.DataFrame) -> list[Standing]:
    """Returns each optimizer's row, those that are first by seconds most often on top."""
    middle = medians(found)
    rows = []
    for name in found["optimizer"].unique(maintain_order=True):
        ratios = {measure: _to_best_other(middle, name, measure) for measure in MEASURES}
        mine = found.filter(optimizer=name)["steps"].is_infinite()
        rows.append(
            Standing(
                optimizer=name,
                first={key: sum(not x > 1 for x in values) for key, values in ratios.items()},
                ratio={key: float(np.median(values)) for key, values in ratios.items()},
                missed_tasks=int(middle.filter(optimizer=name)["steps"].is_infinite().sum()),
                missed=int(mine.sum()),
                runs=len(mine),
            )
        )
    return sorted(rows, key=lambda row: [(-row.first[key], row.ratio[key]) for key in MEASURES])


def _to_best_other(middle: pl.DataFrame, name: str, measure: str) -> list[float]:
    """Returns, task by task, an optimizer's median ÷ the best other's.

    It is infinite where the optimizer missed, and NaN where no other ran and it did not.
    """
    ratios = []
    for _, rows in middle.group_by("task", maintain_order=True):
        mine = rows.filter(optimizer=name)[measure].item()
        other = rows.filter(pl.col("optimizer") != name)[measure].min()
        against = math.nan if other is None else other
        ratios.append(mine / against if math.isfinite(mine) else math.inf)
    return ratios


@dataclass(frozen=True)
class Pair:
    """Two optimizers, by seconds."""

    one: str
    other: str
    ahead: float  # share of (task, seed) in which the first is faster; a tie is half
    chance: float  # p of Wilcoxon's signed-rank test over tasks, corrected for all pairs


def pairs(found: pl.DataFrame) -> list[Pair]:
    """Compares every two optimizers.

    Seeds of one task are no independent evidence, so the test takes one number a task, the ratio of
    medians. Benjamini and Hochberg's correction is for the number of pairs.
    """
    names = found["optimizer"].unique(maintain_order=True).to_list()
    both = list(combinations(names, 2))
    if not both:
        return []
    times = found.pivot("optimizer", index=["task", "seed"], values="seconds")
    middle = medians(found).pivot("optimizer", index="task", values="seconds")
    chances = [_chance(_differences(middle, *pair)) for pair in both]
    corrected = false_discovery_control(chances)
    return [
        Pair(*pair, float(np.mean(np.sign(-_differences(times, *pair)) + 1) / 2), float(chance))
        for pair, chance in zip(both, corrected, strict=True)
    ]


def _differences(times: pl.DataFrame, one: str, other: str) -> NDArray[np.float64]:
    """Returns differences of logarithms; a miss is beyond every time, two misses are a tie."""
    logs = [np.log(np.minimum(times[name].to_numpy(), 1e12)) for name in (one, other)]
    difference: NDArray[np.float64] = logs[0] - logs[1]
    return difference


def _chance(differences: NDArray[np.float64]) -> float:
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="zsplit").pvalue)
