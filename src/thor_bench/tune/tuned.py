"""What a study found, in numbers: medians and ratios with bootstrap intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from thor_bench.report.summary import Spread, measured
from thor_bench.tune.tuning import StudyResult

CONFIDENCE = 0.95
_RESAMPLES = 9999


def median_of(values: Sequence[float]) -> Spread:
    """Returns the median of one value per seed (infinite: a miss) with its 95 % interval."""
    return _estimate(np.median, values)


def ratio_of(values: Sequence[float], others: Sequence[float]) -> Spread:
    """Returns the ratio of two medians with its interval; NaN where both are infinite."""

    def ratio(one: NDArray[np.float64], other: NDArray[np.float64], axis: int = -1) -> object:
        return np.median(one, axis=axis) / np.median(other, axis=axis)

    return _estimate(ratio, values, others)


def _estimate(statistic: Callable[..., Any], *samples: Sequence[float]) -> Spread:
    with np.errstate(invalid="ignore"):  # ∞ ÷ ∞
        value = float(statistic(*samples, axis=-1))
        if min(map(len, samples)) < 2:
            return Spread(value)
        found = bootstrap(
            samples, statistic, n_resamples=_RESAMPLES, vectorized=True, method="percentile", rng=0
        )
    # scipy's own interval goes between neighbours, which infinite ones do not allow
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.nanquantile(
        found.bootstrap_distribution, (tail, 1.0 - tail), method="inverted_cdf"
    )
    return Spread(value, float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One optimizer's row: how fast its tuned settings are under fresh seeds."""

    optimizer: str
    runs: int
    misses: int  # seeds that never reached the target
    trial: int  # that won
    seconds: Spread  # training time to the target
    steps: Spread
    ratio: Spread  # time ÷ that of the best first-order optimizer; NaN where there is none


def tuned(result: StudyResult) -> list[Tuned]:
    """Returns each optimizer's row, in the order of the study."""
    runs = measured(result.runs, result.target)
    times = {name: runs.filter(optimizer=name)["seconds"].to_list() for name in result.winners}
    rivals = {name: statistics.median(times[name]) for name in result.study.first_order}
    fastest = min(rivals, key=lambda name: rivals[name], default="")
    ratios = {name: Spread(math.nan) for name in times}
    if math.isfinite(rivals.get(fastest, math.inf)):
        ratios = {name: ratio_of(seconds, times[fastest]) for name, seconds in times.items()}
        ratios[fastest] = Spread(1.0)
    return [
        Tuned(
            optimizer=name,
            runs=len(seconds),
            misses=sum(map(math.isinf, seconds)),
            trial=result.winners[name].number,
            seconds=median_of(seconds),
            steps=median_of(runs.filter(optimizer=name)["steps"].to_list()),
            ratio=ratios[name],
        )
        for name, seconds in times.items()
    ]
