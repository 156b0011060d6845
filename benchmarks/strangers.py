"""``THOR(model)`` and untuned peers on kinds of models that nothing here was tuned for.

``OMP_NUM_THREADS=1 python benchmarks/strangers.py --out docs/results/strangers`` trains every task
of ``benchmarks/strangers`` with each optimizer, at the league's defaults and schedule, and writes a
table. Runs are kept under ``--runs`` and not repeated. About an hour of one core. Some tasks, and
changes of an optimizer's defaults after its name:

    python benchmarks/strangers.py gru ode --optimizers thor "thor lr=0.06" soap --seeds 0
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import polars as pl
from rich.console import Console

from kept import final, kept
from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.records import RunFinished
from thor_bench.records.task_card import number_text
from thor_bench.report.tables import TextTable
from thor_bench.tasks import Task, find_task

if TYPE_CHECKING:
    from thor_bench.records.reading import Run

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "benchmarks" / "strangers"
OURS, USUAL = "thor", "adamw"
OPTIMIZERS = (OURS, USUAL, "adamw lr=0.003", "muon", "normuon", "soap")
_WARMUP = "warmup=0.05"  # then linear to zero, as in the league
_EVALUATIONS = 20  # in a run, about, as in the league


@dataclass(frozen=True)
class Result:
    """Runs of one optimizer on one task, a seed each."""

    task: Task
    optimizer: str
    runs: tuple[Run, ...]

    @cached_property
    def final(self) -> float:
        """Median over seeds of the metric at the end; a run that failed has the worst."""
        return median(final(self.task, run) for run in self.runs)

    @property
    def seconds(self) -> float:
        """Median seconds of a step, over the blocks between records: ten steps, a refresh."""
        return median(
            (after.seconds - before.seconds) / (after.step - before.step)
            for run in self.runs
            for before, after in pairwise(run.steps)
        )

    def steps_to(self, target: float) -> float:
        """Median over seeds of the steps to a value of the metric; infinite where it is missed."""
        reaches = self.task.metric.reaches
        return median(
            next((r.step for r in run.evaluations if reaches(r.test_metric, target)), math.inf)
            for run in self.runs
        )


def made(task: Task, optimizer: str, seed: int, runs: Path) -> Run:
    """Returns a run, which is trained unless it is there.

    Args:
        task: What is trained.
        optimizer: Its name, and after it what is changed of its defaults.
        seed: The seed.
        runs: Folder of all runs.
    """
    name, *changes = optimizer.split()
    evaluations = max(1, round(_EVALUATIONS / task.epochs))
    options = RunOptions(preset=DEFAULTS, evals_per_epoch=evaluations)
    config = plan_run(task, name, seed=seed, changes=[_WARMUP, *changes], options=options)
    directory = runs / task.label / f"{optimizer.replace(' ', '-')}-{seed}"
    return kept(config, directory)


def measured(name: str, optimizers: list[str], seeds: list[int], runs: Path) -> list[Result]:
    """Trains a task with every optimizer, seed by seed, so that a drift hits all alike."""
    task = find_task(os.path.relpath(TASKS / f"{name}.py"))
    both = {(seed, one): made(task, one, seed, runs) for seed in seeds for one in optimizers}
    return [Result(task, one, tuple(both[seed, one] for seed in seeds)) for one in optimizers]


def table(tasks: list[list[Result]]) -> TextTable:
    """Returns each optimizer's metric, THOR's place, and its steps to the best other's metric."""
    return TextTable.of(map(_row, tasks))


def _row(results: list[Result]) -> dict[str, str]:
    ours, others = results[0], [one for one in results if not one.optimizer.startswith(OURS)]
    metric = ours.task.metric
    best = metric.best([one.final for one in others])
    ahead = sum(metric.best([ours.final, one.final]) != ours.final for one in others)
    steps = number_text(ours.steps_to(best), 0)
    return {
        "task": ours.task.label,
        "metric": f"{metric.name} {metric.unit}".strip(),
        **{one.optimizer: number_text(one.final, metric.digits) for one in results},
        "place": str(1 + ahead),
        "steps to best other's": f"{steps} of {ours.runs[0].started.total_steps}",
    }


def times_table(tasks: list[list[Result]]) -> TextTable:
    """Returns seconds of a step: AdamW's, and the others' ÷ AdamW's."""
    rows = []
    for results in tasks:
        seconds = {one.optimizer: one.seconds for one in results}
        usual = seconds.get(USUAL, math.nan)
        shares = {one: number_text(value / usual, 2) for one, value in seconds.items()}
        rows.append({"task": results[0].task.label, "ms": number_text(1e3 * usual, 1), **shares})
    return TextTable.of(rows)


def numbers(tasks: list[list[Result]]) -> str:
    """Returns one line of CSV a run."""
    return pl.DataFrame(
        {
            "task": one.task.label,
            "optimizer": one.optimizer,
            "seed": run.config.seed,
            "steps": run.started.total_steps,
            "final": run.end.final_metric if isinstance(run.end, RunFinished) else math.nan,
            "seconds": run.end.seconds if run.end else math.nan,
        }
        for results in tasks
        for one in results
        for run in one.runs
    ).write_csv()


def main() -> None:
    """Parses the command line, trains, writes the tables."""
    every = sorted(path.stem for path in TASKS.glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=every, metavar="TASK")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, help="THOR is first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "strangers")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "strangers")
    said = parser.parse_args()
    tasks = []
    for name in said.tasks:
        tasks.append(measured(name, said.optimizers, said.seeds, said.runs))
        Console().print(table(tasks[-1:]).to_markdown(), markup=False, soft_wrap=True)
    text = f"{table(tasks).to_markdown()}\n{times_table(tasks).to_markdown()}"
    said.out.mkdir(parents=True, exist_ok=True)
    (said.out / "table.md").write_text(text, encoding="utf-8")
    (said.out / "table.csv").write_text(numbers(tasks), encoding="utf-8")
    Console().print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
