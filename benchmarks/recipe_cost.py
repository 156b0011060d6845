"""Cost of the steps that ``thor compare`` times: a workload's recipes in turn, in one process.

Each optimizer trains its own copy of the model on the real data, along its own schedule and with
its refreshes. Ten steps of one, then ten of the next, so that drift of the machine hits all alike,
which whole runs one after the other don't allow.

    python benchmarks/recipe_cost.py fashion --optimizers sgd,thor,muon --steps 600
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track

from thor_bench.errors import BenchError
from thor_bench.optimizers.recipes import plan_run
from thor_bench.optimizers.registry import lacking
from thor_bench.records.config import DataSource
from thor_bench.report.tables import TextTable
from thor_bench.tasks import Task, find_task
from thor_bench.training.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thor_bench.tasks.data import Batch

_TURN = 10  # steps
_WARM_UP = 10  # steps of each that don't count


@dataclass
class Contestant:
    """An optimizer in training, and its measurements in seconds."""

    name: str
    session: Session
    steps: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins with the first batch."""
        self._batches = self._all_batches()

    def _all_batches(self) -> Iterator[Batch]:
        for epoch in count():
            yield from self.session.data.batches(epoch, 0)

    def step(self) -> None:
        """Takes a training step, as the bench does, and notes how long it and its update took."""
        begin = time.perf_counter()
        loss = self.session.loss(next(self._batches))
        loss.item()
        self.session.rule.zero_grad()
        loss.backward()
        middle = time.perf_counter()
        self.session.rule.step()
        end = time.perf_counter()
        self.steps.append(end - begin)
        self.updates.append(end - middle)


def measure(workload: Task, names: list[str], steps: int) -> list[Contestant]:
    """Trains all recipes in turn and returns what their steps took."""
    source = DataSource()
    data = workload.load(source)
    shared = replace(workload, load=lambda _source: data)
    contestants = [
        Contestant(name, Session(plan_run(shared, name, seed=0), shared, source)) for name in names
    ]
    for _ in track(range((steps + _WARM_UP) // _TURN), description="turns"):
        for contestant in contestants:
            for _ in range(_TURN):
                contestant.step()
    return contestants


def report(title: str, contestants: list[Contestant], absent: dict[str, str]) -> str:
    """Returns a Markdown table of means and medians; ratios of means, to the first contestant.

    Absent optimizers say why.
    """
    first = contestants[0]
    mean, median = statistics.fmean, statistics.median
    base = mean(first.steps[_WARM_UP:])
    rows = []
    for one in contestants:
        step, update = one.steps[_WARM_UP:], one.updates[_WARM_UP:]
        times = [f"{x * 1e3:.2f}" for x in (mean(step), median(step), mean(update), median(update))]
        rows.append((one.name, times[0], f"{mean(step) / base:.3f}", *times[1:]))
    headings = (
        "optimizer", "step, ms, mean", f"÷ {first.name}", "median", "optimizer, ms, mean", "median",
    )  # fmt: skip
    rows += [(name, what, "–", "–", "–", "–") for name, what in absent.items()]
    head = f"{title}, {len(first.steps) - _WARM_UP} steps each"
    return f"{head}\n\n{TextTable(headings, tuple(rows)).to_markdown()}"


def main() -> None:
    """Parses the command line, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", nargs="?", default="fashion")
    parser.add_argument("--optimizers", default="sgd,thor,muon")
    parser.add_argument("--steps", type=int, default=600, help="measured steps of each")
    chosen = parser.parse_args()
    if chosen.steps < _TURN:
        parser.error(f"--steps {chosen.steps} must be at least {_TURN}, one turn; try --steps 600")
    try:
        names = chosen.optimizers.split(",")
        absent = lacking(names)
        present = [name for name in names if name not in absent]
        contestants = measure(find_task(chosen.workload), present, chosen.steps)
    except BenchError as error:
        parser.error(str(error))
    threads = torch.get_num_threads()
    title = f"{chosen.workload}, torch {torch.__version__}, {threads} threads"
    Console().print(report(title, contestants, absent), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
