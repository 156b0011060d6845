"""Making a league: the search where one is asked for, then every task with fresh seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from thor_bench.compare import Comparison, read_comparison, run_comparison
from thor_bench.errors import BenchError, RunInterruptedError
from thor_bench.league.plan import SEARCH_SEED, League, factors, target_of
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import Run
from thor_bench.report.summary import measured
from thor_bench.tasks import find_task
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.observers import Observer
from thor_bench.tune.tuning import Observe, Pace

_SEARCHED = range(SEARCH_SEED, SEARCH_SEED + 1)
_TARGET_SETTER, _TARGET_FACTORS, _TARGET_SEEDS = "adamw", 6, 3


@dataclass(frozen=True)
class LeagueResult:
    """What a league found."""

    league: League
    directory: Path
    factors: Mapping[str, float]  # of each optimizer's rates
    runs: tuple[Run, ...]  # of all tasks, with fresh seeds


class LeagueRunner:
    """Makes what is not on disk yet of a league.

    Args:
        league: What is asked for.
        directory: Its folder: ``TASK/STAGE/OPTIMIZER-seedN``.
        source: Where data may be found.
        observe: ``(run, its folder, its title) -> observers`` of each run that is trained.
        tell: Receives a line about progress.
    """

    def __init__(
        self,
        league: League,
        directory: Path,
        *,
        source: DataSource,
        observe: Observe,
        tell: Callable[[str], None],
    ) -> None:
        self._league, self._directory = league, directory
        self._source, self._observe, self._tell = source, observe, tell
        self._command = league.command
        self._counted = 0  # runs that stand on disk
        self._pace = Pace(0)

    def run(self) -> LeagueResult:
        """Makes the league.

        Raises:
            BenchError: The folder holds other runs, or a run cannot be made.
        """
        league = self._league
        self._check_data()
        searched = league.search if league.search > 1 else 0
        each = len(league.tasks) * len(league.optimizers)
        self._pace = Pace(each * (searched + league.seeds))
        chosen = dict.fromkeys(league.optimizers, 1.0)
        if searched:
            chosen = self._search()
        stage = f"best-of-{searched}" if searched else "defaults"
        seeds = range(league.seeds)
        runs = [
            run
            for task in league.tasks
            for run in self._made(league.comparison(task, chosen, seeds), stage)
        ]
        return LeagueResult(league, self._directory, chosen, tuple(runs))

    def set_targets(self) -> dict[str, float]:
        """Returns what AdamW reaches on each task with every seed, at its best rate there."""
        league = self._league
        self._check_data()
        self._command += " --set-targets"
        self._pace = Pace(len(league.tasks) * (_TARGET_FACTORS + _TARGET_SEEDS))
        found = {}
        for task in league.tasks:
            metric = find_task(task).metric
            reached = {  # of equal ones the last, which is the nearest to its own
                metric.worst(self._best(task, factor, _SEARCHED)): factor
                for factor in reversed(factors(_TARGET_FACTORS))
            }
            factor = reached[metric.best([*reached])]
            values = self._best(task, factor, range(_TARGET_SEEDS))
            found[task] = metric.easier(metric.worst(values))
            self._tell(f'    "{task}": {found[task]:g},  # at {factor:g} times its rate')
        return found

    def _check_data(self) -> None:
        """Reads every task's data, so that what is missing is told before hours of training."""
        for task in self._league.tasks:
            find_task(task).data(self._source)

    def _best(self, task: str, factor: float, seeds: range) -> list[float]:
        """Returns the best value of the metric that each of AdamW's runs reaches."""
        metric = find_task(task).metric
        comparison = self._league.comparison(
            task, {_TARGET_SETTER: factor}, seeds, target=metric.perfect
        )
        runs = self._made(comparison, f"target-{factor:g}")
        worst = metric.worst(metric.range)
        return [
            metric.best([record.test_metric for record in run.evaluations] or [worst])
            for run in runs
        ]

    def _search(self) -> dict[str, float]:
        """Returns the factor of each optimizer that serves all tasks best: misses, then steps."""
        league = self._league
        frames = []
        for task in league.tasks:
            for factor in factors(league.search):
                same = dict.fromkeys(league.optimizers, factor)
                runs = self._made(league.comparison(task, same, _SEARCHED), f"search-{factor:g}")
                share = pl.col("steps") / pl.Series([run.started.total_steps for run in runs])
                frames.append(
                    measured(runs, target_of(task)).select(
                        "optimizer", factor=pl.lit(factor), share=share.cast(pl.Float64)
                    )
                )
        finite = pl.when(pl.col("share").is_finite()).then(pl.col("share").log()).otherwise(0.0)
        order = (
            pl.concat(frames)
            .group_by("optimizer", "factor", maintain_order=True)
            .agg(misses=pl.col("share").is_infinite().sum(), steps=finite.mean())
            .sort("misses", "steps", maintain_order=True)
            .unique("optimizer", keep="first", maintain_order=True)
        )
        best = dict(order.select("optimizer", "factor").iter_rows())
        for name in league.optimizers:
            self._tell(f"{name}: {best[name]:g} times its rate serves all tasks best")
        return {name: best[name] for name in league.optimizers}

    def _made(self, comparison: Comparison, stage: str) -> list[Run]:
        """Makes the runs of one task, or reads them."""
        directory = self._directory / find_task(comparison.workload).label / stage
        former = read_comparison(directory)
        if former is not None and former.target != comparison.target:
            message = (
                f"{directory} holds runs to {former.target or 0:g}, not {comparison.target or 0:g}"
            )
            raise BenchError(f"{message}; name another --out")
        before = self._counted
        self._counted += len(comparison.runs)

        def observe(config: RunConfig, folder: Path, number: int) -> Sequence[Observer]:
            told = self._pace.start(before + number - 1)
            return self._observe(config, folder, f"{told} {config.workload} {config.name}, {stage}")

        try:
            runs = run_comparison(comparison, directory, source=self._source, observe=observe)
        except RunInterruptedError as stopped:
            again = self._source.again(self._command, self._directory)
            message = f"stopped and saved in {directory}; go on with: {again}"
            raise RunInterruptedError(message) from stopped
        for run in runs:  # hundreds, of which only the records are read again
            (run.directory / CHECKPOINT_FILE).unlink(missing_ok=True)
        return runs
