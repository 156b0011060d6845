"""What a study searches: for every optimizer as many settings, as far around its recipe.

All optimizers are tried at the same points of the unit cube, so none is luckier than another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import qmc

from thor_bench.errors import BenchError
from thor_bench.optimizers.recipes import RunOptions, find_recipe, plan_run
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import RunConfig
from thor_bench.tasks import Workload

HORIZON = "epochs"
TRIAL_SEED = 0  # of every trial's run
_WARMUP = (0.02, 0.4)  # share of the horizon
_NO_DECAY = (1e-6, 1e-3)  # searched where the recipe has no weight decay
_PARTS = 4  # of an epoch: horizons are whole numbers of them
_DIGITS = 4  # of a setting: enough, and readable in a command


@dataclass(frozen=True)
class Dimension:
    """One setting that a study searches.

    Attributes:
        key: Name of the setting, or ``epochs`` for the horizon.
        low: Smallest value.
        high: Largest value.
        scale: What is spread evenly: the value, its logarithm, or the logarithm of 1 - value
            (momentum and averages).
    """

    key: str
    low: float
    high: float
    scale: Literal["linear", "log", "complement"] = "log"

    def at(self, share: float) -> float:
        """Returns the value at a share of the way, 0 … 1, from ``low`` to ``high``."""
        if self.scale == "linear":
            return self.low + share * (self.high - self.low)
        if self.scale == "log":
            return float(self.low * (self.high / self.low) ** share)
        return 1.0 - float((1.0 - self.low) * ((1.0 - self.high) / (1.0 - self.low)) ** share)


def search_space(workload: Workload, optimizer: str) -> tuple[Dimension, ...]:
    """Returns the five dimensions of an optimizer: four that all have, and one of its own.

    The learning rate and the weight decay go up to 4 and 10 times around the recipe's, the horizon
    up to twice, momentum and averages (as 1 - value) up to 3 times, any other setting up to 10.

    Raises:
        BenchError: There is no such optimizer.
    """
    recipe = find_recipe(workload, optimizer)
    own = find_optimizer(optimizer, argument="--optimizers").own
    value = float(getattr(recipe.settings, own))
    return (
        _around("lr", recipe.settings.lr, 4.0),
        _around("weight_decay", recipe.settings.weight_decay, 10.0)
        if recipe.settings.weight_decay
        else Dimension("weight_decay", *_NO_DECAY),
        Dimension("warmup", *_WARMUP, "linear"),
        _around(HORIZON, float(recipe.epochs), 2.0),
        _around_one(own, value) if _is_average(own) else _around(own, value, 10.0),
    )


def _around(key: str, value: float, factor: float) -> Dimension:
    return Dimension(key, value / factor, value * factor)


def _around_one(key: str, value: float) -> Dimension:
    rest = 1.0 - value
    return Dimension(key, max(0.0, 1.0 - 3.0 * rest), 1.0 - rest / 3.0, "complement")


def _is_average(key: str) -> bool:
    return key.startswith(("momentum", "beta", "decay"))


def plan_trials(
    workload: Workload, optimizer: str, *, trials: int, seed: int, options: RunOptions
) -> tuple[RunConfig, ...]:
    """Settles the trials of an optimizer: first its recipe, then Halton's quasi-random points.

    Args:
        workload: What is trained.
        optimizer: Name of the optimizer.
        trials: Number of trials; more trials begin with the same ones.
        seed: Seed of the points, the same for all optimizers.
        options: Options of every run; the horizon is searched.

    Raises:
        BenchError: There is no such optimizer, or a value is not allowed.
    """
    space = search_space(workload, optimizer)
    if trials < 1:
        raise BenchError(f"--trials {trials} must be at least 1; try --trials 8")
    first = plan_run(workload, optimizer, seed=TRIAL_SEED, options=options)
    points = qmc.Halton(d=len(space), scramble=True, rng=seed).random(max(trials - 1, 0))
    return (first, *(_plan(workload, optimizer, space, point, first, options) for point in points))


def _plan(
    workload: Workload,
    optimizer: str,
    space: Sequence[Dimension],
    point: Sequence[float],
    first: RunConfig,
    options: RunOptions,
) -> RunConfig:
    values = {one.key: one.at(float(share)) for one, share in zip(space, point, strict=True)}
    epochs = max(1, round(values.pop(HORIZON) * _PARTS)) / _PARTS
    changes = [f"{key}={value:.{_DIGITS}g}" for key, value in values.items()]
    return plan_run(
        workload,
        optimizer,
        seed=first.seed,
        changes=changes,
        options=replace(options, epochs=epochs),
    )


def searched(config: RunConfig, space: Sequence[Dimension]) -> tuple[tuple[str, float], ...]:
    """Returns the values of a run along the dimensions of a space, in their order."""
    values = {**config.settings, HORIZON: config.epochs}
    return tuple((one.key, float(values[one.key] or 0.0)) for one in space)
