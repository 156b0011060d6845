"""Compares readings of the trace rule on digits, five seeds each; writes docs/results/trace-rule.

Runs on disk are not repeated. Usage: python scripts/trace_rule.py FOLDER_OF_RUNS [FASHION], where
FASHION holds runs of ``thor compare fashion --optimizers thor``, whose Δ make a second table.
"""

import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.reading import Run, find_runs, read_run
from thor_bench.records.records import RECORDS_FILE
from thor_bench.report.figures import draw_changes, write_figure
from thor_bench.report.summary import Spread, summarize
from thor_bench.report.tables import TextTable
from thor_bench.tasks import find_task
from thor_bench.training.train import train

SEEDS = 5
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "trace-rule"


@dataclass(frozen=True)
class Case:
    """A reading of the rule.

    Attributes:
        stem: Folder of its runs, and its figure.
        title: Its row in the table.
        optimizer: Name of the optimizer.
        changes: ``key=value`` texts over its recipe.
    """

    stem: str
    title: str
    optimizer: str
    changes: tuple[str, ...] = ()


FACTORS, AVERAGE = "damped_trace=factors", "decay=0.95"
CASES = (
    Case("none", "no rule", "paper-thor-nt"),
    Case("product", "product, ω2 = 0", "paper-thor"),
    Case("product-average", "product, ω2 = 0, average 0.95", "paper-thor", (AVERAGE,)),
    Case("product-stop", "product, ω2 = 0.001", "paper-thor-stop"),
    Case("factors", "factors, ω2 = 0", "paper-thor", (FACTORS,)),
    Case("factors-average", "factors, ω2 = 0, average 0.95", "paper-thor", (FACTORS, AVERAGE)),
    Case("factors-stop", "factors, ω2 = 0.001", "paper-thor-stop", (FACTORS,)),
)


def runs_of(case: Case, directory: Path) -> list[Run]:
    """Returns a case's runs, made where they are missing."""
    workload, found = find_task("digits"), []
    for seed in range(SEEDS):
        folder = directory / f"{case.stem}-{seed}"
        options = RunOptions(evals_per_epoch=4)
        config = plan_run(
            workload, case.optimizer, seed=seed, changes=case.changes, options=options
        )
        if not (folder / RECORDS_FILE).exists():
            train(config, folder)
        found.append(read_run(folder))
    return found


def changes(run: Run) -> list[float]:
    """Returns the finite Δ of a run, of all layers."""
    return [record.change for record in run.decisions if record.change is not None]


def deciles(values: list[float]) -> tuple[str, str, str]:
    """Returns the 10 %, 50 % and 90 % quantiles as text."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return f"{cuts[0]:.4f}", f"{cuts[4]:.4f}", f"{cuts[8]:.4f}"


def row(case: Case, runs: list[Run]) -> tuple[str, ...]:
    """Returns a case's line of the table."""
    (summary,) = summarize(runs, find_task("digits").target)
    decided = [[r.decision for r in run.decisions if r.change is not None] for run in runs]
    means = [statistics.mean(one.count(kind) for one in decided) for kind in ("update", "freeze")]
    asked = statistics.mean(len(one) for one in decided)
    return (
        case.title,
        *deciles([change for run in runs for change in changes(run)]),
        f"{means[0]:.1f} of {asked:.1f}",
        f"{means[1]:.1f}",
        spread(summary.steps),
        f"{summary.misses}",
        f"{summary.best_metric.median:.2f}",
    )


def spread(steps: Spread) -> str:
    """Returns ``median (low–high)``."""
    low, high = (f"{value:.0f}".replace("inf", "∞") for value in (steps.low, steps.high))
    return f"{steps.median:.0f} ({low}–{high})"


def layers(runs: list[Run]) -> TextTable:
    """Returns Δ of each layer, over all runs."""
    seen: dict[str, list[float]] = {}
    for run in runs:
        for record in run.decisions:
            if record.change is not None:
                seen.setdefault(record.layer, []).append(record.change)
    rows = tuple((layer, *deciles(values)) for layer, values in seen.items())
    return TextTable(("layer", "Δ 10 %", "median", "90 %"), rows)


def write(stem: str, table: TextTable) -> None:
    """Writes a table as Markdown and CSV."""
    (RESULTS / f"{stem}.md").write_text(table.to_markdown(), encoding="utf-8")
    (RESULTS / f"{stem}.csv").write_text(table.to_csv(), encoding="utf-8")


def main() -> None:
    """Makes the runs, then tables and figures."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in CASES:
        runs = runs_of(case, Path(sys.argv[1]))
        rows.append(row(case, runs))
        if case.stem in ("product", "factors"):
            draw = partial(draw_changes, run=runs[0])
            write_figure(RESULTS, f"change-{case.stem}", f"Δ per layer, {case.title}", draw)
    headings = ("tr(F + λI) read as", "Δ 10 %", "median", "90 %", "updates", "frozen layers")
    write("digits", TextTable((*headings, "steps to 98 %", "missed", "best, %"), tuple(rows)))
    if len(sys.argv) > 2:
        write("fashion", layers(find_runs(Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
