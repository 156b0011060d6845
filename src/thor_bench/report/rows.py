"""Tables whose rows name their cells, and their files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from thor_bench.report.tables import TextTable


def table_of(rows: Iterable[Mapping[str, str]]) -> TextTable:
    """Returns the table of some rows: cells by their heading, the same ones in each."""
    cells = list(rows)
    headings = tuple(cells[0]) if cells else ()
    return TextTable(headings, tuple(tuple(row[name] for name in headings) for row in cells))


def write_table(directory: Path, stem: str, table: TextTable, numbers: str | None = None) -> None:
    """Writes ``stem.md`` and ``stem.csv``, the latter with the cells or with numbers of its own."""
    (directory / f"{stem}.md").write_text(table.to_markdown(), encoding="utf-8")
    csv = table.to_csv() if numbers is None else numbers
    (directory / f"{stem}.csv").write_text(csv, encoding="utf-8")
