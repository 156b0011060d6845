"""What a study searches: for every optimizer as many settings, as far around its recipe.

All optimizers are tried at the same points of the unit cube, so none is luckier than another. The
first trial of each is its recipe.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import QMCSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import RunConfig

HORIZON = "epochs"
_NO_DECAY = (1e-6, 1e-3)  # searched where the recipe has no weight decay
_WARMUP = (0.02, 0.4)  # share of the horizon
_PARTS = 4  # of an epoch: horizons are whole numbers of them
_DIGITS = 4  # of a setting: enough, and readable in a command

_NEAR_ONE = ("momentum", "beta", "decay")  # settings whose distance from 1 is searched
_REST = "1 - "  # before the name of such a setting in the journal


def searched(config: RunConfig) -> dict[str, float]:
    """Returns what a study searches of a run: four settings that all have, one of its own."""
    keys = ("lr", "weight_decay", "warmup", HORIZON, find_optimizer(config.optimizer).own)
    values = {**config.settings, HORIZON: config.epochs}
    return {key: float(values[key] or 0.0) for key in keys}


def _turned(values: Mapping[str, float]) -> dict[str, float]:
    """Exchanges settings near 1 for their distance from 1, or back."""
    turned = {}
    for key, value in values.items():
        if key.startswith((_REST, *_NEAR_ONE)):
            turned[key.removeprefix(_REST) if _REST in key else f"{_REST}{key}"] = 1.0 - value
        else:
            turned[key] = value
    return turned


def search_space(recipe: RunConfig) -> dict[str, FloatDistribution]:
    """Returns the five dimensions of an optimizer, in the order of what is searched.

    The learning rate and the weight decay go up to 4 and 10 times around the recipe's, the horizon
    up to twice, momentum and averages (as 1 - value) up to 3 times, any other setting up to 10.
    """
    values = _turned(searched(recipe))
    *_, own = values
    space = {
        "lr": _around(values["lr"], 4.0),
        "weight_decay": FloatDistribution(*_NO_DECAY, log=True),
        "warmup": FloatDistribution(*_WARMUP),
        HORIZON: _around(values[HORIZON], 2.0),
        own: _around(values[own], 3.0 if own.startswith(_REST) else 10.0),
    }
    if values["weight_decay"]:
        space["weight_decay"] = _around(values["weight_decay"], 10.0)
    return space


def _around(value: float, factor: float) -> FloatDistribution:
    return FloatDistribution(value / factor, value * factor, log=True)


def plan_trials(recipe: RunConfig, *, trials: int, seed: int) -> list[FrozenTrial]:
    """Returns the trials of an optimizer: first its recipe, then Halton's quasi-random points.

    More trials begin with the same ones.

    Args:
        recipe: Its recipe; a value outside of the space stands at its border.
        trials: Number of trials.
        seed: Seed of the points, the same for all optimizers.
    """
    space, values = search_space(recipe), _turned(searched(recipe))
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = QMCSampler(qmc_type="halton", scramble=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(
        {name: min(max(values[name], one.low), one.high) for name, one in space.items()}
    )
    for _ in range(trials):
        study.tell(study.ask(dict(space)), 0.0)
    return [
        create_trial(state=TrialState.WAITING, params=one.params, distributions=one.distributions)
        for one in study.trials
    ]


def trial_config(recipe: RunConfig, trial: FrozenTrial) -> RunConfig:
    """Returns the run of a trial; the first is the recipe as it is."""
    if trial.number == 0:
        return recipe
    values = _turned(trial.params)
    epochs = max(1, round(values.pop(HORIZON) * _PARTS)) / _PARTS
    settings = {key: float(f"{value:.{_DIGITS}g}") for key, value in values.items()}
    return replace(recipe, settings={**recipe.settings, **settings}, epochs=epochs)


def open_journal(path: Path) -> JournalStorage:
    """Opens the journal of a study, in a folder that no other process works in.

    What a killed process leaves, half a line or a lock, is removed.

    Raises:
        BenchError: The file is broken.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = JournalFileOpenLock(str(path))
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    try:
        return JournalStorage(backend)
    except (ValueError, KeyError) as error:
        message = f"{path} cannot be read ({reason(error)[:80]}); begin anew"
        raise BenchError(
            f"{message}; begin anew with --overwrite, or name another --out"
        ) from error


class Search:
    """The trials of one optimizer in the journal: each waits, runs, and has a score at the end.

    Args:
        recipe: The optimizer's recipe.
        journal: Where trials stand.
        trials: Number of trials.
        seed: Seed of the points, the same for all optimizers.
    """

    def __init__(
        self, recipe: RunConfig, journal: JournalStorage, *, trials: int, seed: int
    ) -> None:
        self._study = optuna.create_study(
            storage=journal, study_name=recipe.optimizer, load_if_exists=True
        )
        planned = plan_trials(recipe, trials=trials, seed=seed)
        self._study.add_trials(planned[len(self._study.trials) :])
        self.configs = [trial_config(recipe, trial) for trial in self._study.trials]

    def _state(self, number: int) -> TrialState:
        return self._study.get_trials(deepcopy=False)[number].state

    def begin(self, number: int) -> None:
        """Notes that a trial runs; trials begin in their order."""
        if self._state(number) is TrialState.WAITING:
            self._study.ask()

    def score(self, number: int, seconds: float) -> None:
        """Notes the score of a trial: its training time to the target, infinite where it missed."""
        if self._state(number) is TrialState.RUNNING:
            self._study.tell(number, seconds)

    def limit(self, finalists: int) -> float:
        """Returns the time after which a trial cannot become one of the finalists."""
        scored = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        seconds = sorted(trial.value for trial in scored if trial.value is not None)
        return math.inf if len(seconds) < finalists else seconds[finalists - 1]
