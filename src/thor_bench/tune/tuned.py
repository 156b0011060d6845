"""What a study found, in numbers: medians and ratios with bootstrap intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from thor_bench.optimizers.registry import find_optimizer
from thor_bench.report.summary import Reached, group_by_optimizer, reached
from thor_bench.report.tables import number_text
from thor_bench.tasks import find_workload
from thor_bench.tune.trials import Finished
from thor_bench.tune.tuning import StudyResult

CONFIDENCE = 0.95
_RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A median and its bootstrap interval; infinite where seeds missed the target.

    Attributes:
        value: Median, or ratio of medians.
        low: Lower end of the 95 % interval; NaN for a single seed.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        """Returns ``median (low–high)``."""
        if math.isnan(self.low):
            return number_text(self.value, 2)
        value, low, high = (number_text(one, 2) for one in (self.value, self.low, self.high))
        return f"{value} ({low}–{high})"


class _Statistic(Protocol):
    """A number of some samples, along an axis."""

    def __call__(self, *samples: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        """Returns it."""


def median_of(values: Sequence[float]) -> Estimate:
    """Returns the median of some values with its interval.

    Args:
        values: One per seed; infinite for a miss.
    """
    return _estimate(_median, values)


def ratio_of(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Returns the ratio of two medians with its interval; NaN where both are infinite.

    Args:
        values: Of the numerator, one per seed.
        others: Of the denominator, one per seed.
    """
    return _estimate(_ratio, values, others)


def _median(*samples: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(np.median(samples[0], axis=axis))


def _ratio(*samples: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(np.median(samples[0], axis=axis) / np.median(samples[1], axis=axis))


def _estimate(statistic: _Statistic, *samples: Sequence[float]) -> Estimate:
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    with np.errstate(invalid="ignore"):  # ∞ ÷ ∞
        value = float(statistic(*arrays))
        if min(map(len, arrays)) < 2:
            return Estimate(value)
        found = bootstrap(
            arrays, statistic, n_resamples=_RESAMPLES, vectorized=True, method="percentile", rng=0
        )
    # scipy's own interval goes between neighbours, which infinite ones do not allow
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.nanquantile(
        found.bootstrap_distribution, (tail, 1.0 - tail), method="inverted_cdf"
    )
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One optimizer's row: how fast its tuned settings are under fresh seeds.

    Attributes:
        optimizer: Its name.
        winner: The trial that won.
        seconds: Training time to the target.
        steps: Steps to the target.
        ratio: Time ÷ that of the best first-order optimizer (without interval in its own row);
            None where there is none.
        misses: Seeds that never reached the target.
        runs: Seeds.
    """

    optimizer: str
    winner: Finished
    seconds: Estimate
    steps: Estimate
    ratio: Estimate | None
    misses: int
    runs: int


def tuned(result: StudyResult) -> list[Tuned]:
    """Returns each optimizer's row, in the order of the study."""
    metric = find_workload(result.study.workload).metric
    groups = group_by_optimizer(result.runs)
    found = {
        name: [reached(run, metric, result.target) for run in groups[name]]
        for name in result.study.optimizers
    }
    baseline = _baseline(found)
    return [
        _row(result.winners[name], hits, None if baseline is None else found[baseline])
        for name, hits in found.items()
    ]


def _baseline(found: Mapping[str, Sequence[Reached]]) -> str | None:
    """Returns the fastest first-order optimizer that reaches the target at all."""
    medians = {
        name: statistics.median(one.seconds for one in hits)
        for name, hits in found.items()
        if find_optimizer(name).first_order
    }
    fastest = min(medians, key=lambda name: medians[name], default=None)
    return None if fastest is None or math.isinf(medians[fastest]) else fastest


def _row(winner: Finished, hits: Sequence[Reached], others: Sequence[Reached] | None) -> Tuned:
    seconds = [one.seconds for one in hits]
    ratio = None if others is None else ratio_of(seconds, [one.seconds for one in others])
    return Tuned(
        optimizer=winner.trial.config.optimizer,
        winner=winner,
        seconds=median_of(seconds),
        steps=median_of([one.steps for one in hits]),
        ratio=Estimate(1.0) if hits is others else ratio,
        misses=sum(map(math.isinf, seconds)),
        runs=len(hits),
    )
