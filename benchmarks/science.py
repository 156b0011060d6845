"""Equations and fits: time to an error, by Gauss-Newton and by what people use else.

``python benchmarks/science.py poisson-2d heat --out docs/results/science`` searches each
optimizer's settings on seed 0, runs the best ones on fresh seeds, and writes a table of each
problem. Seconds are those of this process on the CPU, without the test's.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from science_contestants import Setting, settings
from science_problems import Batch, Problem, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Run:
    """What a run has come to: seconds to each target, infinite where missed, and the last error."""

    seconds: dict[float, float]
    error: float
    steps: int
    spent: float


def run(problem: Problem, setting: Setting, seed: int, seconds: float) -> Run:
    """Trains until the last target or the end of time."""
    torch.manual_seed(seed)
    torch.set_default_dtype(setting.dtype)
    net = problem.network()
    stream = torch.Generator().manual_seed(seed + 1)
    step, batch = setting.start(net), problem.draw(problem.sizes[setting.size], stream)
    reached: dict[float, float] = {}
    spent, looked, steps, error = 0.0, 0.0, 0, math.inf
    held: list[Batch] = [batch]
    while spent < seconds:
        started = time.process_time()
        if setting.draws and steps:
            held[0] = problem.draw(problem.sizes[setting.size], stream)
        step(lambda: problem.residuals(net, held[0]), 1 - spent / seconds)
        spent, steps = spent + time.process_time() - started, steps + 1
        if spent - looked < seconds / problem.looks and spent < seconds:
            continue
        looked, error = spent, problem.error(net)
        for target in problem.targets:
            if error <= target:
                reached.setdefault(target, spent)
        if error <= problem.targets[-1] or math.isnan(error):
            break
    return Run({t: reached.get(t, math.inf) for t in problem.targets}, error, steps, spent)


def rank(found: Run, targets: Sequence[float]) -> tuple[float, ...]:
    """Time to the second target, else the error."""
    return (found.seconds[targets[1]], found.error if not math.isnan(found.error) else math.inf)


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def compare(name: str, problem: Problem, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Searches, then runs fresh seeds; a row of each run."""
    chosen: dict[str, tuple[tuple[float, ...], Setting]] = {}
    for setting in settings(image=name.startswith("image")):
        if asked.optimizers and setting.name not in asked.optimizers:
            continue
        if asked.settings:
            if setting.said in asked.settings:
                chosen[setting.name] = ((), setting)
            continue
        found = run(problem, setting, 0, asked.search)
        score = rank(found, problem.targets)
        tell(name, "search", setting.name, setting.said, f"{found.error:.2e}", found.seconds)
        if setting.name not in chosen or score < chosen[setting.name][0]:
            chosen[setting.name] = (score, setting)
    rows = []
    for seed in range(1, asked.seeds + 1):  # seed by seed, so that all see the same machine
        for _, setting in chosen.values():
            # Where a rate falls over a run, a shorter one may be there sooner.
            for seconds in asked.horizons if setting.decays else asked.horizons[-1:]:
                found = run(problem, setting, seed, seconds)
                rows.append(row_of(name, setting, seed, seconds, found))
                tell(name, *rows[-1].values())
    return rows


def row_of(name: str, setting: Setting, seed: int, seconds: float, found: Run) -> dict[str, Any]:
    said = f"{setting.said}, {seconds:g} s" if setting.decays else setting.said
    row = {"problem": name, "optimizer": setting.name, "setting": said, "seed": seed}
    times = {f"to {t:g}": s for t, s in found.seconds.items()}
    return row | times | {"error": found.error, "steps": found.steps, "seconds": found.spent}


def table(rows: Sequence[dict[str, Any]], problem: Problem, seconds: float) -> str:
    """Medians over seeds, with the least and the most."""
    timed = problem.looks > 1  # else a run is judged at its end alone
    targets = [key for key in rows[0] if key.startswith("to ") and timed]
    head = ["optimizer", "setting", *(f"s {t}" for t in targets), problem.unit, "steps/s"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    for name, setting in dict.fromkeys((row["optimizer"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["optimizer"], row["setting"]) == (name, setting)]
        cells = [name, setting]
        cells += [_spread([row[target] for row in own], "{:.1f}".format) for target in targets]
        cells.append(_spread([row["error"] for row in own], problem.shown))
        rate = statistics.median(r["steps"] / r["seconds"] for r in own)
        cells.append(f"{rate:.1f}" if rate < 1 else f"{rate:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in rows})
    lines.append(
        f"\nMedians of {seeds} seeds (least–most), at most {seconds:g} s of one core each."
    )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    def shown(value: float) -> str:
        return "∞" if math.isinf(value) else form(value)

    middle = statistics.median_low(values)
    return f"{shown(middle)} ({shown(min(values))}–{shown(max(values))})"


def main() -> None:
    known = problems()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="+", choices=[*known])
    parser.add_argument("--optimizers", nargs="*", default=[])
    parser.add_argument("--settings", nargs="*", default=[], help="such as lr=0.01: no search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--horizons", nargs="+", type=float, default=[6.0, 20.0, 60.0], help="seconds of runs"
    )
    parser.add_argument("--search", type=float, default=20.0, help="most that a search run takes")
    parser.add_argument("--out", type=Path, default=Path("runs/science"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.problems:
        problem = known[name]()
        rows = compare(name, problem, asked)
        with (asked.out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = table(rows, problem, asked.horizons[-1])
        (asked.out / f"{name}.md").write_text(f"# {name}\n\n{text}", encoding="utf-8")
        tell(text)


if __name__ == "__main__":
    main()
