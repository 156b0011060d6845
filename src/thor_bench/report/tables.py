"""Tables for the terminal, Markdown, CSV and the report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thor_bench.optimizers.recipes import find_recipe
from thor_bench.optimizers.registry import OPTIMIZERS, lacking
from thor_bench.optimizers.settings import to_values
from thor_bench.records.task_card import Measure, number_text
from thor_bench.report.summary import BASELINE, Summary
from thor_bench.tasks import WORKLOADS, Task

_LISTING: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD}
_DISPENSABLE = ("horizon", "final", "data %")

# What a column of a comparison means, in the order of the columns; the first fits any target.
_MEANINGS = {
    "s to ": "seconds of training, without evaluation and saving",
    f"÷ {BASELINE}": "share of SGD's time",
    "horizon": "epochs that the schedule is made for",
    "missed": "seeds that never arrive, which count as ∞",
    "best": "best evaluation",
    "final": "last evaluation",
    "MiB": "peak memory",
    "data %": "share of the time that waits for batches",
}


@dataclass(frozen=True)
class TextTable:
    """A table as text, ready for any output; the first column names the row.

    Attributes:
        headings: Of the columns.
        rows: The cells.
        bold: Row and column of cells that stand out.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, str]]) -> Self:
        """Returns the table of some rows: cells by their heading, the same ones in each."""
        cells = list(rows)
        headings = tuple(cells[0]) if cells else ()
        return cls(headings, tuple(tuple(row[name] for name in headings) for row in cells))

    def to_markdown(self) -> str:
        """Returns a Markdown table, numbers to the right."""
        rules = ("---" if words else "---:" for words in self.are_words())
        rows = (self.marked(number, "**{}**") for number in range(len(self.rows)))
        lines = [self.headings, tuple(rules), *rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def are_words(self) -> list[bool]:
        """Says of each column whether it holds words (names, settings) and not numbers."""
        columns = zip(*self.rows, strict=True)
        found = [any(cell[:1].isalpha() for cell in cells) for cells in columns]
        return found or [True for _ in self.headings]

    def marked(self, row: int, mark: str) -> tuple[str, ...]:
        """Returns the cells of a row, with a mark around those that stand out."""
        cells = enumerate(self.rows[row])
        return tuple(mark.format(cell) if (row, n) in self.bold else cell for n, cell in cells)

    def to_csv(self) -> str:
        """Returns the cells as comma-separated values."""
        return pl.DataFrame(self.rows, schema=self.headings, orient="row").write_csv()

    def write(self, directory: Path, stem: str, *, numbers: str | None = None) -> None:
        """Writes the table as Markdown and CSV.

        Args:
            directory: Where the files go; must exist.
            stem: File name without ending.
            numbers: The CSV, where it tells more than the cells.
        """
        (directory / f"{stem}.md").write_text(self.to_markdown(), encoding="utf-8")
        csv = self.to_csv() if numbers is None else numbers
        (directory / f"{stem}.csv").write_text(csv, encoding="utf-8")

    def transposed(self) -> "TextTable":
        """Returns the table with a column for each row."""
        headings, *rows = zip(self.headings, *self.rows, strict=True)
        # The headings are a row of their own, above the first.
        bold = {(column - 1, row + 1) for row, column in self.bold if column}
        return TextTable(headings, tuple(rows), frozenset(bold))

    def _narrow(self) -> "TextTable":
        """Returns the table without ranges and without the columns that matter least."""
        kept = [n for n, heading in enumerate(self.headings) if heading not in _DISPENSABLE]
        rows = tuple(tuple(row[n].partition(" (")[0] for n in kept) for row in self.rows)
        bold = {(row, kept.index(n)) for row, n in self.bold if n in kept}
        return TextTable(tuple(self.headings[n] for n in kept), rows, frozenset(bold))

    def to_rich(self, title: str, console: Console) -> Table:
        """Returns a table for the terminal: the fullest form that fits its width."""
        forms = [_to_rich(form, title) for form in (self, self.transposed(), self._narrow())]
        free = console.options.update(max_width=10_000)
        fitting = (
            one for one in forms if console.measure(one, options=free).maximum <= console.width
        )
        return next(fitting, forms[-1])


def _to_rich(text: TextTable, title: str) -> Table:
    table = Table(title=Text(title), title_style="bold", pad_edge=False, **_LISTING)
    table.padding = (0, 1, 0, 0)
    for heading, words in zip(text.headings, text.are_words(), strict=True):
        side: Literal["left", "right"] = "left" if words else "right"
        # Settings are wider than a terminal; cut off, nobody could repeat the run.
        table.add_column(Text(heading), justify=side, overflow="fold", no_wrap=not table.columns)
    for number in range(len(text.rows)):
        bold = [(number, column) in text.bold for column in range(len(text.headings))]
        cells = zip(text.rows[number], bold, strict=True)
        table.add_row(*(Text.assemble((cell, "bold" if own else "")) for cell, own in cells))
    return table


def comparison_table(
    summaries: Sequence[Summary],
    metric: Measure,
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
    hidden = _columns_that_tell_nothing(summaries)
    table = TextTable.of(
        {name: cell for name, cell in _cells(row, metric, target).items() if name not in hidden}
        for row in summaries
    )
    empty = tuple("–" for _ in table.headings[2:])
    missing = tuple((name, what, *empty) for name, what in (absent or {}).items())
    return TextTable(table.headings, table.rows + missing)


def _cells(row: Summary, metric: Measure, target: float) -> dict[str, str]:
    return {
        "optimizer": row.optimizer,
        f"s to {metric.goal(target)}": row.seconds.text(2),
        f"÷ {BASELINE}": "–" if row.ratio is None else number_text(row.ratio, 2),
        "steps": row.steps.text(0),
        "epochs": row.epochs.text(1),
        "horizon": f"{row.horizon:g}",
        "missed": f"{row.misses}/{row.runs}",
        "best": row.best_metric.text(metric.digits),
        "final": row.final_metric.text(metric.digits),
        "s/epoch": row.epoch_seconds.text(2),
        "MiB": number_text(row.peak_memory_mb.median, 0),
        "data %": number_text(row.wait_percent.median, 1),
    }


def _columns_that_tell_nothing(summaries: Sequence[Summary]) -> set[str]:
    """Returns the columns that are the process's and not the optimizers', or near nothing."""
    memory = [row.peak_memory_mb.median for row in summaries]
    hidden = {
        "MiB": max(memory, default=0.0) <= 1.05 * min(memory, default=0.0),
        "data %": all(row.wait_percent.median < 1 for row in summaries),
        f"÷ {BASELINE}": all(row.ratio is None for row in summaries),
    }
    return {name for name, tells_nothing in hidden.items() if tells_nothing}


def legend_of(table: TextTable) -> str:
    """Returns what the columns of a comparison mean, in one line."""
    told = [
        f"{heading}: {meaning}"
        for name, meaning in _MEANINGS.items()
        for heading in table.headings
        if heading.startswith(name)
    ]
    return f"Medians over seeds (lowest–highest). {'; '.join(told)}."


def comparison_csv(summaries: Sequence[Summary], target: float) -> str:
    """Returns every number of a comparison at full precision, one row per optimizer."""
    rows = pl.json_normalize([asdict(row) for row in summaries], separator="_")
    return rows.insert_column(1, pl.lit(target).alias("target")).write_csv()


def workloads_table() -> Table:
    """Returns the table of ``thor workloads``."""
    table = Table("name", "what", "data", "target", "batch", title="Workloads", **_LISTING)
    for one in WORKLOADS.values():
        target = f"{one.metric.name} {one.metric.format(one.target or math.nan)}"
        table.add_row(one.name, one.description, one.input_summary, target, str(one.batch_size))
    return table


def optimizers_table(workload: Task) -> Table:
    """Returns the table of ``thor optimizers``: tuned settings and horizon on a workload."""
    headings = ("name", "what", "epochs", "settings (change with --set key=value)")
    table = Table(*headings, title=f"Optimizers on {workload.name}", **_LISTING)
    absent = lacking(OPTIMIZERS)
    for spec in OPTIMIZERS.values():
        recipe = find_recipe(workload, spec.name)
        settings = ", ".join(f"{key}={value}" for key, value in to_values(recipe.settings).items())
        what = absent.get(spec.name, spec.description)
        table.add_row(spec.name, what, f"{recipe.epochs:g}", settings)
    return table
