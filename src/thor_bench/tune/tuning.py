"""Making a study: the target first, then the search, then fresh seeds for each winner."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thor_bench.compare import Comparison, run_comparison
from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import Run, read_run
from thor_bench.report.summary import reached
from thor_bench.tasks import find_workload
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending
from thor_bench.training.train import train
from thor_bench.tune.study import (
    FIRST_FRESH_SEED,
    REPEATS,
    WINNERS_FOLDER,
    Study,
    Trial,
    open_study,
)
from thor_bench.tune.trials import Finished, Pace

TARGET_FOLDER = "target"


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        study: What was asked for.
        directory: Its folder.
        target: Value that was timed.
        trials: Every trial.
        winners: The best trial of each optimizer, by name.
        runs: The winners' runs with fresh seeds.
    """

    study: Study
    directory: Path
    target: float
    trials: tuple[Finished, ...]
    winners: dict[str, Finished]
    runs: tuple[Run, ...]


Observe = Callable[[RunConfig, Path, str], Sequence[Observer]]


class StudyRunner:
    """Makes what is not on disk yet of a study.

    Args:
        study: What is asked for.
        directory: Its folder.
        source: Where data may be found.
        observe: ``(run, its folder, its title) -> observers`` of each run that is trained.
        tell: Receives a line about progress after each run.
    """

    def __init__(
        self,
        study: Study,
        directory: Path,
        *,
        source: DataSource,
        observe: Observe,
        tell: Callable[[str], None],
    ) -> None:
        self._study = study
        self._directory = directory
        self._source = source
        self._observe = observe
        self._tell = tell
        self._counted = 0  # runs that stand on disk
        self._metric = find_workload(study.workload).metric
        self._finished: dict[str, Finished] = {}
        fresh = len(study.optimizers) + (study.target is None)
        again = len(study.optimizers) * study.finalists * len(REPEATS) * (study.finalists > 1)
        self._pace = Pace(len(study.trials) + again + study.seeds * fresh)

    def run(self) -> StudyResult:
        """Makes the study.

        Raises:
            BenchError: The folder holds another study, or a run cannot be made.
        """
        study = self._study
        open_study(study, self._directory)
        target = self._set_target() if study.target is None else study.target
        for trial in study.trials:
            self._trial(trial, target)
        winners = self._winners(target)
        trials = tuple(self._finished[trial.folder] for trial in study.trials)
        for name, winner in winners.items():
            self._tell(f"{name}: trial {winner.trial.number} wins")
        runs = self._fresh(
            {name: winner.trial.config for name, winner in winners.items()}, target, WINNERS_FOLDER
        )
        return StudyResult(study, self._directory, target, trials, winners, tuple(runs))

    def _set_target(self) -> float:
        """Returns what the best tuned first-order optimizer reaches with every fresh seed."""
        firsts = [t for t in self._study.trials if find_optimizer(t.config.optimizer).first_order]
        for trial in firsts:
            self._trial(trial, None)
        done = [self._finished[trial.folder] for trial in firsts]
        best = min(done, key=lambda one: one.rank(self._metric, self._metric.perfect))
        name = best.optimizer
        runs = self._fresh({name: best.trial.config}, self._metric.perfect, TARGET_FOLDER)
        values = [[record.test_metric for record in run.evaluations] for run in runs]
        if not all(values):
            message = f"{name} set no target: a run of its best trial has no evaluation"
            raise BenchError(f"{message}; give --target")
        target = self._metric.worst([self._metric.best(one) for one in values])
        goal = self._metric.easier(target)
        self._tell(
            f"target {self._metric.goal(goal)}: {name}, trial {best.trial.number}, all seeds"
        )
        return goal

    def _trial(self, trial: Trial, target: float | None) -> None:
        """Makes a trial, or reads it; without a target nothing ends it early."""
        if trial.folder in self._finished:
            return
        early_stop = None
        if target is not None:
            early_stop = EarlyStop(
                self._metric, target, self._limit(trial.config.optimizer, target)
            )
        self._finished[trial.folder] = Finished(trial, self._made(trial, early_stop))

    def _made(self, trial: Trial, early_stop: EarlyStop | None) -> Run:
        """Makes the run of a trial, or reads it."""
        folder = self._directory / trial.folder
        if is_pending(trial.config, folder):
            told = self._pace.start(self._counted)
            observers = self._observe(trial.config, folder, f"{told} {folder.name}")
            self._train(trial.config, folder, observers, early_stop)
        self._counted += 1
        # A search makes hundreds of runs, and only their records are read again.
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        return read_run(folder)

    def _limit(self, optimizer: str, target: float) -> float:
        """Returns the time after which a trial of an optimizer cannot become a finalist."""
        times = sorted(
            reached(one.run, self._metric, target).seconds
            for one in self._finished.values()
            if one.optimizer == optimizer
        )
        count = self._study.finalists
        return math.inf if len(times) < count else times[count - 1]

    def _train(
        self,
        config: RunConfig,
        folder: Path,
        observers: Sequence[Observer],
        early_stop: EarlyStop | None,
    ) -> None:
        try:
            train(
                config,
                folder,
                source=self._source,
                observers=observers,
                early_stop=early_stop,
                resume=has_run(folder),
            )
        except RunDivergedError:
            pass  # on record as failed: a miss
        except RunInterruptedError as stopped:
            raise self._interrupted(folder) from stopped

    def _interrupted(self, folder: Path) -> RunInterruptedError:
        again = self._source.again(self._study.command, self._directory.parent)
        return RunInterruptedError(f"stopped and saved in {folder.name}; go on with: {again}")

    def _winners(self, target: float) -> dict[str, Finished]:
        """Returns the best trial of each optimizer, over further seeds where several are left."""
        finalists = {name: self._finalists(name, target) for name in self._study.optimizers}
        if self._study.finalists > 1:
            for rivals in zip(*finalists.values(), strict=True):
                for one in rivals:
                    self._repeat(one, target)
        return {
            name: min(
                (self._finished[one.trial.folder] for one in mine),
                key=lambda one: one.rank(self._metric, target),
            )
            for name, mine in finalists.items()
        }

    def _finalists(self, optimizer: str, target: float) -> list[Finished]:
        """Returns the best trials of an optimizer on the first seed, best first."""
        mine = [one for one in self._finished.values() if one.optimizer == optimizer]
        ranked = sorted(mine, key=lambda one: one.rank(self._metric, target))
        return ranked[: self._study.finalists]

    def _repeat(self, once: Finished, target: float) -> None:
        """Runs a finalist again, to the target or its horizon, and keeps what it did."""
        to_target = EarlyStop(self._metric, target)
        runs = tuple(self._made(again, to_target) for again in once.trial.repeats())
        self._finished[once.trial.folder] = replace(once, repeats=runs)

    def _fresh(self, configs: dict[str, RunConfig], target: float, folder: str) -> list[Run]:
        """Runs settings to their horizon with fresh seeds, seed by seed."""
        directory = self._directory / folder
        comparison = fresh_seeds(self._study, configs, target)

        before = self._counted
        self._counted += len(comparison.runs)

        def observe(config: RunConfig, where: Path, number: int) -> Sequence[Observer]:
            told = self._pace.start(before + number - 1)
            return self._observe(config, where, f"{told} {config.name}, fresh")

        try:
            return run_comparison(comparison, directory, source=self._source, observe=observe)
        except RunInterruptedError as stopped:
            raise self._interrupted(directory) from stopped


def fresh_seeds(study: Study, configs: dict[str, RunConfig], target: float) -> Comparison:
    """Returns the comparison of some settings under seeds that no trial had."""
    seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + study.seeds)
    return Comparison(
        workload=study.workload,
        optimizers=tuple(configs),
        seeds=study.seeds,
        target=target,
        runs=tuple(replace(config, seed=seed) for seed in seeds for config in configs.values()),
        command=study.command,
    )
