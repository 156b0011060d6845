"""Making a study: the target first, then the search, then fresh seeds for each winner."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from thor_bench.compare import Comparison, run_comparison
from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.recipes import plan_run
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import Run, read_run
from thor_bench.report.summary import measured
from thor_bench.tasks import card_of, find_task
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending
from thor_bench.training.train import train
from thor_bench.tune.search import Search, open_journal
from thor_bench.tune.study import JOURNAL_FILE, Study, open_study

TRIALS_FOLDER = "trials"
TARGET_FOLDER = "target"
WINNERS_FOLDER = "winners"
TRIAL_SEED = 0  # of every trial's run
REPEATS = (1, 2)  # seeds that the finalists run again with
FIRST_FRESH_SEED = 3

Observe = Callable[[RunConfig, Path, str], Sequence[Observer]]


@dataclass(frozen=True)
class Trial:
    """A trial of an optimizer, from 0 (its recipe), that has ended."""

    number: int
    run: Run
    repeats: tuple[Run, ...] = ()  # of a finalist, with further seeds

    @property
    def optimizer(self) -> str:
        """Name of the optimizer."""
        return self.run.config.optimizer


def ranked(trials: Sequence[Trial], target: float) -> list[Trial]:
    """Orders trials, best first: seeds that missed, median time to the target, best value."""
    metric = card_of(trials[0].run.started).metric
    runs = [(place, run) for place, one in enumerate(trials) for run in (one.run, *one.repeats)]
    best = pl.col("best_metric").max() if metric.higher_is_better else pl.col("best_metric").min()
    order = (
        measured([run for _, run in runs], target)
        .with_columns(trial=pl.Series([place for place, _ in runs]))
        .group_by("trial")
        .agg(best, pl.col("seconds").median(), misses=pl.col("seconds").is_infinite().sum())
        .sort(
            "misses", "seconds", "best_metric", "trial",
            descending=[False, False, metric.higher_is_better, False], nulls_last=True,
        )
    )  # fmt: skip
    return [trials[place] for place in order["trial"]]


@dataclass(frozen=True)
class StudyResult:
    """What a study found."""

    study: Study
    directory: Path
    target: float  # that was timed
    trials: tuple[Trial, ...]
    winners: Mapping[str, Trial]  # the best of each optimizer
    runs: tuple[Run, ...]  # the winners', with fresh seeds


class Pace:
    """Tells which run is next and about how long all the rest will take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._made = 0
        self._begun = 0.0

    def start(self, before: int) -> str:
        """Returns ``[number/total]`` of a run that begins now, with the time that is left.

        Args:
            before: Runs that stand on disk.
        """
        now = time.monotonic()
        self._begun = self._begun if self._made else now
        left = ""
        if self._made:
            minutes = (now - self._begun) / self._made * (self._total - before) / 60
            left = f", {max(minutes, 1):.0f} min left"
        self._made += 1
        return f"[{before + 1}/{self._total}{left}]"


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
        self._workload = find_task(study.workload)
        self._metric = self._workload.metric
        self._searches: dict[str, Search] = {}
        self._runs: dict[Path, Run] = {}  # of the trials, by folder
        self._counted = 0  # runs that stand on disk
        again = study.finalists * len(REPEATS) if study.finalists > 1 else 0
        of_each = study.trials + again + study.seeds
        self._pace = Pace(
            len(study.optimizers) * of_each + (study.seeds if study.target is None else 0)
        )

    def run(self) -> StudyResult:
        """Makes the study.

        Raises:
            BenchError: The folder holds another study, or a run cannot be made.
        """
        study = self._study
        open_study(study, self._directory)
        journal = open_journal(self._directory / JOURNAL_FILE)
        for name in study.optimizers:
            recipe = plan_run(self._workload, name, seed=TRIAL_SEED, options=study.run)
            self._searches[name] = Search(
                recipe, journal, trials=study.trials, seed=study.search_seed
            )
        target = self._set_target() if study.target is None else study.target
        # Number by number, so that a drift of the machine hits all optimizers alike.
        numbers = [(name, n) for n in range(study.trials) for name in study.optimizers]
        trials = {pair: self._trial(*pair, target) for pair in numbers}
        winners = self._winners(trials, target)
        for name, winner in winners.items():
            self._tell(f"{name}: trial {winner.number} wins")
        runs = self._fresh([one.run.config for one in winners.values()], target, WINNERS_FOLDER)
        ended = tuple(trials.values())
        return StudyResult(study, self._directory, target, ended, winners, tuple(runs))

    def _set_target(self) -> float:
        """Returns what the best tuned first-order optimizer reaches with every fresh seed."""
        study, metric = self._study, self._metric
        numbers = [(name, n) for n in range(study.trials) for name in study.first_order]
        best = ranked([self._trial(*pair, None) for pair in numbers], metric.perfect)[0]
        runs = self._fresh([best.run.config], None, TARGET_FOLDER)
        values = [[record.test_metric for record in run.evaluations] for run in runs]
        if not all(values):
            message = f"{best.optimizer} set no target: a run of its best trial has no evaluation"
            raise BenchError(f"{message}; give --target")
        target = metric.easier(metric.worst([metric.best(one) for one in values]))
        told = f"{best.optimizer}, trial {best.number}, all seeds"
        self._tell(f"target {metric.goal(target)}: {told}")
        return target

    def _trial(self, name: str, number: int, target: float | None) -> Trial:
        """Makes a trial, or reads it; without a target nothing ends it early, or gives a score."""
        search = self._searches[name]
        search.begin(number)
        stop = None
        if target is not None:
            stop = EarlyStop(self._metric, target, search.limit(self._study.finalists))
        run = self._made(search.configs[number], f"{name}-{number:03d}", stop)
        if target is not None:
            search.score(number, measured([run], target)["seconds"].item())
        return Trial(number, run)

    def _made(self, config: RunConfig, name: str, stop: EarlyStop | None) -> Run:
        """Makes the run of a trial, or reads it."""
        folder = self._directory / TRIALS_FOLDER / name
        if folder in self._runs:
            return self._runs[folder]
        if is_pending(config, folder):
            watching = self._observe(config, folder, f"{self._pace.start(self._counted)} {name}")
            source = self._source
            try:
                resume = has_run(folder)
                train(
                    config,
                    folder,
                    source=source,
                    observers=watching,
                    early_stop=stop,
                    resume=resume,
                )
            except RunDivergedError:
                pass  # on record as failed: a miss
            except RunInterruptedError as stopped:
                raise self._interrupted(folder) from stopped
        self._counted += 1
        # A search makes hundreds of runs, and only their records are read again.
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        self._runs[folder] = read_run(folder)
        return self._runs[folder]

    def _interrupted(self, folder: Path) -> RunInterruptedError:
        again = self._source.again(self._study.command, self._directory.parent)
        return RunInterruptedError(f"stopped and saved in {folder.name}; go on with: {again}")

    def _winners(self, trials: dict[tuple[str, int], Trial], target: float) -> dict[str, Trial]:
        """Returns the best trial of each optimizer, over further seeds where several are left."""
        names, count = self._study.optimizers, self._study.finalists
        mine = {name: [one for one in trials.values() if one.optimizer == name] for name in names}
        finalists = {name: ranked(mine[name], target)[:count] for name in names}
        if count == 1:
            return {name: best for name, (best,) in finalists.items()}
        for rivals in zip(*finalists.values(), strict=True):
            for one in rivals:
                trials[one.optimizer, one.number] = self._repeated(one, target)
        return {
            name: ranked([trials[name, one.number] for one in mine], target)[0]
            for name, mine in finalists.items()
        }

    def _repeated(self, once: Trial, target: float) -> Trial:
        """Runs a finalist again with further seeds, to the target or its horizon."""
        return replace(
            once,
            repeats=tuple(
                self._made(
                    replace(once.run.config, seed=seed),
                    f"{once.run.directory.name}-seed{seed}",
                    EarlyStop(self._metric, target),
                )
                for seed in REPEATS
            ),
        )

    def _fresh(self, configs: Sequence[RunConfig], target: float | None, folder: str) -> list[Run]:
        """Runs settings to their horizon with seeds that no trial had, seed by seed."""
        seeds = range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + self._study.seeds)
        comparison = Comparison(
            workload=self._study.workload,
            optimizers=tuple(config.optimizer for config in configs),
            seeds=self._study.seeds,
            target=target,
            runs=tuple(replace(config, seed=seed) for seed in seeds for config in configs),
            command=self._study.command,
        )
        before = self._counted
        self._counted += len(comparison.runs)

        def observe(config: RunConfig, where: Path, number: int) -> Sequence[Observer]:
            told = self._pace.start(before + number - 1)
            return self._observe(config, where, f"{told} {config.name}, fresh")

        directory = self._directory / folder
        try:
            return run_comparison(comparison, directory, source=self._source, observe=observe)
        except RunInterruptedError as stopped:
            raise self._interrupted(directory) from stopped
