"""Reports as tables."""

from __future__ import annotations

from helpers import mlp
from torch_thor import THOR
from torch_thor.options.tables import Table, Tabular

TABLE = Table(("name", "size"), (("a<b", "7"), ("c", "1234")), ("in all 1241",))


def test_words_begin_alike_and_numbers_end_alike() -> None:
    assert TABLE.to_text().splitlines() == [
        "name  size",
        "----------",
        "a<b      7",
        "c     1234",
        "in all 1241",
    ]


def test_words_are_no_markup() -> None:
    shown = TABLE.to_html()
    assert "a&lt;b" in shown
    assert "a<b" not in shown
    assert shown.count("<tr>") == 3
    assert shown.endswith("<p>in all 1241</p>")


def test_a_table_without_rows_has_its_head() -> None:
    assert Table(("name",), ()).to_text() == "name\n----"


def test_all_reports_are_tables() -> None:
    thor = THOR(mlp())
    for report in (thor.coverage(), thor.memory(), thor.statistics()):
        assert isinstance(report, Tabular)
        lines = str(report).splitlines()
        assert len(lines[1]) >= max(len(line) for line in lines[: 2 + len(report.table.rows)])
        assert report._repr_html_().startswith("<table>")
