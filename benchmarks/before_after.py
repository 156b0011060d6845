"""Cost of THOR's steps before ÷ after a change: two checkouts in turn, in one process.

The other checkout's ``torch_thor`` is imported beside this one's. Step i of both runs before step
i + 1 of either, and who goes first changes every step. A second copy of this checkout runs along:
its ratio to the first says how much of a difference is noise.

    git worktree add ../before b1c9be4
    python benchmarks/before_after.py small-resnet --before ../before/src
"""

from __future__ import annotations

import argparse
import gc
import importlib
import platform
import statistics
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

import torch_thor
from models import TASKS, Task
from step_cost import Contestant
from thor_bench.report.tables import TextTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_LR = 1e-4


@dataclass(frozen=True)
class Checkout:
    """One of the packages, with its modules by name."""

    package: Any
    modules: dict[str, ModuleType]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, names of modules mean this checkout's: options look their types up by name."""
        before = _taken_away()
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            _taken_away()
            sys.modules.update(before)


def this_checkout() -> Checkout:
    """The ``torch_thor`` that this script imports."""
    modules = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    return Checkout(torch_thor, modules)


def checkout_of(source: Path) -> Checkout:
    """Imports another checkout's ``torch_thor``, and leaves this one's as it is."""
    own = _taken_away()
    sys.path.insert(0, str(source))
    try:
        other = importlib.import_module("torch_thor")
    finally:
        sys.path.remove(str(source))
        found = _taken_away()
        sys.modules.update(own)
    if not Path(other.__file__ or "").is_relative_to(source.resolve()):
        raise SystemExit(f"--before {source}: found {other.__file__}; give a checkout's src folder")
    return Checkout(other, found)


def _taken_away() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "torch_thor"


def contestant(name: str, checkout: Checkout, task: Task, interval: int) -> Contestant:
    """Builds a model with THOR of one of the packages."""
    model, package = task.model(), checkout.package
    with checkout.in_place():
        own = package.GrowingInterval(interval, 1.0)
        optimizer = package.THOR(
            model, lr=_LR, interval=own, exclude=task.exclude, norm_control="graft"
        )
    return Contestant(name, model, [optimizer])


def measure(task: Task, contestants: list[Contestant], interval: int, cycles: int) -> None:
    """Runs all in turn; the first cycle is thrown away."""
    batch = task.batch()
    gc.disable()
    for step in track(range(interval * (1 + cycles)), description="steps"):
        if step == interval:
            gc.collect()
            for one in contestants:
                one.steps.clear()
                one.updates.clear()
        for one in contestants if step % 2 else reversed(contestants):
            one.step(task, batch)


def report(title: str, contestants: list[Contestant], interval: int) -> str:
    """Returns a Markdown table of plain and refreshing steps; ratios are before ÷ this row."""
    rows = []
    parts = [
        (one.name, [_medians(times, interval) for times in (one.steps, one.updates)])
        for one in contestants
    ]
    base = parts[0][1]
    for name, measured in parts:
        cells = [
            f"{own * 1e3:.3f} ({own / first:.3f})"
            for of_one, of_first in zip(measured, base, strict=True)
            for own, first in zip(of_one, of_first, strict=True)
        ]
        rows.append((name, *cells))
    headings = ("", "plain step", "refreshing step", "its optimizer, plain", "refreshing")
    return f"{title}; ms (÷ before)\n\n{TextTable(headings, tuple(rows)).to_markdown()}"


def _medians(times: list[float], interval: int) -> tuple[float, float]:
    plain = [time for n, time in enumerate(times) if n % interval]
    return statistics.median(plain), statistics.median(times[::interval])


def main() -> None:
    """Parses the command line, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", choices=TASKS, default="small-resnet")
    parser.add_argument("--before", type=Path, required=True, help="src of another checkout")
    parser.add_argument("--interval", type=int, default=20, help="steps between refreshes")
    parser.add_argument("--cycles", type=int, default=20, help="measured cycles")
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)
    before, after = checkout_of(chosen.before), this_checkout()
    task = TASKS[chosen.task]
    checkouts = {"before": before, "after": after, "after, again": after}
    contestants = [
        contestant(name, checkout, task, chosen.interval) for name, checkout in checkouts.items()
    ]
    measure(task, contestants, chosen.interval, chosen.cycles)
    threads = torch.get_num_threads()
    title = f"{chosen.task}, torch {torch.__version__}, {threads} threads, {platform.machine()}"
    Console().print(report(title, contestants, chosen.interval), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
