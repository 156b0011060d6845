"""What ``thor find`` finds, against the best of twelve rates.

``OMP_NUM_THREADS=1 python benchmarks/finder.py --out docs/results/finder`` trains each task at
twelve rates from 0.003 to 0.5 and at the one that is found, and writes a table. Runs are kept
under ``--runs`` and not repeated. About twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console

from kept import final, kept
from thor_bench.find.finder import find_settings
from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.tasks import Task, find_task
from thor_bench.training.session import Session

ROOT = Path(__file__).parents[1]
USUAL = 0.03
RATES = tuple(round(USUAL * 1.6**power, 5) for power in range(-5, 7))


@dataclass(frozen=True)
class Small:
    """A run of a task that takes seconds.

    Attributes:
        name: A workload, or a file.
        epochs: Its horizon; None: the task's own.
        batch_size: The same.
    """

    name: str
    epochs: float | None = None
    batch_size: int | None = None

    def plan(self, task: Task, seed: int, change: str) -> RunConfig:
        options = RunOptions(epochs=self.epochs, batch_size=self.batch_size, preset=DEFAULTS)
        return plan_run(task, "thor", seed=seed, changes=[change], options=options)


SMALL = {
    Path(one.name).stem: one
    for one in (
        Small("tabular"),
        Small("digits"),
        Small("unet", 0.25, 16),
        Small("vae", 0.3),
        Small("fashion-autoencoder", 1.2),
        Small("image-fit", 3),
        Small("depthwise", 0.3),
        Small("lstm", 1.2),
        Small("pinn", 2),
    )
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    task: str
    steps: int
    share: float  # of them that the finder takes, %
    found: float
    metric: float  # at the rate that is found
    best: float  # of the twelve
    best_rate: float
    usual: float  # at the default's
    off: float  # from the best, %


def measured(small: Small, runs: Path, seed: int) -> Row:
    """Finds a task's rate, and trains at it and at the twelve."""
    task = find_task(small.name)
    found = find_settings(Session(small.plan(task, seed, "overshoot=none"), task, DataSource()))
    values = {
        rate: final(
            task,
            kept(small.plan(task, seed, f"lr={rate}"), runs / task.label / f"{rate}-{seed}"),
        )
        for rate in (*RATES, found.rate)
    }
    best = task.metric.best([values[rate] for rate in RATES])
    return Row(
        task=task.label,
        steps=found.total,
        share=100 * found.taken / found.total,
        found=found.rate,
        metric=values[found.rate],
        best=best,
        best_rate=next(rate for rate in RATES if values[rate] == best),
        usual=values[USUAL],
        off=100 * abs(values[found.rate] / best - 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(SMALL), metavar="TASK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "finder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "finder")
    said = parser.parse_args()
    rows = [measured(SMALL[name], said.runs, said.seed) for name in said.tasks]
    names = [one.name for one in fields(Row)]
    said.out.mkdir(parents=True, exist_ok=True)
    with (said.out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    lines += [
        " | ".join(
            f"{one:.4g}" if isinstance(one, float) else str(one) for one in asdict(row).values()
        )
        for row in rows
    ]
    text = "".join(f"| {line} |\n" for line in lines)
    (said.out / "table.md").write_text(text, encoding="utf-8")
    Console().print(text)


if __name__ == "__main__":
    main()
