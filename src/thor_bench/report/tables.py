"""Tables for the terminal, Markdown, CSV and the report."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from thor_bench.optimizers.recipes import find_recipe
from thor_bench.optimizers.registry import OPTIMIZERS, lacking
from thor_bench.optimizers.settings import to_values
from thor_bench.report.summary import BASELINE, Spread, Summary
from thor_bench.tasks import WORKLOADS, Metric, Workload

_DISPENSABLE = ("horizon", "final", "data %")


@dataclass(frozen=True)
class TextTable:
    """A table as text, ready for any output.

    Attributes:
        headings: One per column.
        rows: Cells; the first column names the row.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Returns a Markdown table, numbers to the right."""
        rules = ("---" if words else "---:" for words in self.are_words())
        lines = [self.headings, tuple(rules), *self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def are_words(self) -> list[bool]:
        """Says of each column whether it holds words (names, settings) and not numbers."""
        columns = zip(*self.rows, strict=True)
        found = [any(cell[:1].isalpha() for cell in cells) for cells in columns]
        return found or [True for _ in self.headings]

    def to_csv(self) -> str:
        """Returns the cells as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.headings, *self.rows])
        return text.getvalue()

    def transposed(self) -> "TextTable":
        """Returns the table with rows and columns exchanged."""
        headings, *rows = zip(self.headings, *self.rows, strict=True)
        return TextTable(headings, tuple(rows))

    def narrow(self) -> "TextTable":
        """Returns the table without ranges and without the columns that matter least."""
        kept = [n for n, heading in enumerate(self.headings) if heading not in _DISPENSABLE]
        rows = tuple(tuple(row[n].partition(" (")[0] for n in kept) for row in self.rows)
        return TextTable(tuple(self.headings[n] for n in kept), rows)

    def to_rich(self, title: str, console: Console) -> Table:
        """Returns a table for the terminal: the fullest form that fits its width."""
        forms = (self, self.transposed(), self.narrow())
        tables = [_to_rich(form, title) for form in forms]
        unlimited = console.options.update(max_width=10_000)
        widths = [console.measure(table, options=unlimited).maximum for table in tables]
        fitting = (t for t, width in zip(tables, widths, strict=True) if width <= console.width)
        return next(fitting, tables[-1])


def _to_rich(text: TextTable, title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    table.padding = (0, 1, 0, 0)
    for heading, words in zip(text.headings, text.are_words(), strict=True):
        # Settings are wider than a terminal; cut off, nobody could repeat the run.
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for row in text.rows:
        table.add_row(*row)
    return table


def comparison_table(
    summaries: Sequence[Summary],
    metric: Metric,
    target: float,
    absent: Mapping[str, str] | None = None,
) -> TextTable:
    """Returns the table of a comparison: medians, with the range over seeds where it has one.

    Args:
        summaries: One row each.
        metric: The workload's metric.
        target: Value that was timed.
        absent: Optimizers that could not run, and what they lack; one row each.
    """
    headings = (
        "optimizer",
        f"s to {metric.goal(target)}",
        f"÷ {BASELINE}",
        "steps",
        "epochs",
        "horizon",
        "missed",
        "best",
        "final",
        "s/epoch",
        "MiB",
        "data %",
    )
    rows = tuple(
        (
            row.optimizer,
            _range(row.seconds, 2),
            "–" if row.ratio is None else number_text(row.ratio, 2),
            _range(row.steps, 0),
            _range(row.epochs, 1),
            f"{row.horizon:g}",
            f"{row.misses}/{row.runs}",
            _range(row.best_metric, metric.digits),
            _range(row.final_metric, metric.digits),
            _range(row.epoch_seconds, 2),
            number_text(row.peak_memory_mb.median, 0),
            number_text(row.wait_percent.median, 1),
        )
        for row in summaries
    )
    empty = tuple("–" for _ in headings[2:])
    missing = tuple((name, what, *empty) for name, what in (absent or {}).items())
    return TextTable(headings, rows + missing)


def comparison_csv(summaries: Sequence[Summary], target: float) -> str:
    """Returns every number of a comparison at full precision, one row per optimizer."""
    spreads = (
        "seconds", "steps", "epochs", "best_metric", "final_metric", "epoch_seconds",
        "peak_memory_mb", "wait_percent",
    )  # fmt: skip
    parts = ("median", "low", "high")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}_{part}" for name in spreads for part in parts]
    writer.writerow(["optimizer", "target", "runs", "misses", "horizon", "ratio", *names])
    for row in summaries:
        numbers = [getattr(getattr(row, name), part) for name in spreads for part in parts]
        writer.writerow(
            [row.optimizer, target, row.runs, row.misses, row.horizon, row.ratio, *numbers]
        )
    return text.getvalue()


def number_text(value: float, digits: int) -> str:
    """Returns a number for a table: ``∞`` where it is infinite, ``–`` where there is none."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.{digits}f}"


def _range(spread: Spread, digits: int) -> str:
    """Returns ``median (low–high)``, or the median alone where all seeds agree."""
    middle, low, high = (number_text(v, digits) for v in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}–{high})"


def workloads_table() -> Table:
    """Returns the table of ``thor workloads``."""
    table = Table(title="Workloads", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("name", "what", "data", "target", "batch"):
        table.add_column(heading)
    for workload in WORKLOADS.values():
        metric = workload.metric
        table.add_row(
            workload.name,
            workload.description,
            workload.input_summary,
            f"{metric.name} {metric.format(workload.target)}",
            str(workload.batch_size),
        )
    return table


def optimizers_table(workload: Workload) -> Table:
    """Returns the table of ``thor optimizers``: tuned settings and horizon on a workload."""
    table = Table(title=f"Optimizers on {workload.name}", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("name", "what", "epochs", "settings (change with --set key=value)"):
        table.add_column(heading)
    absent = lacking(OPTIMIZERS)
    for spec in OPTIMIZERS.values():
        recipe = find_recipe(workload, spec.name)
        settings = ", ".join(f"{key}={value}" for key, value in to_values(recipe.settings).items())
        what = absent.get(spec.name, spec.description)
        table.add_row(spec.name, what, f"{recipe.epochs:g}", settings)
    return table
