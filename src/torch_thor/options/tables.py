"""Reports as tables: aligned in a terminal, HTML in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_GAP = "  "


@dataclass(frozen=True)
class Table:
    """Words in rows and columns.

    Args:
        head: What the columns hold.
        rows: As many words each.
        foot: Lines below, over all columns.
        words: Columns at the left that hold words; all others hold numbers, which end alike.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    words: int = 1

    def to_text(self) -> str:
        """Returns it aligned, for letters of one width."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            _GAP.join(
                cell.ljust(width) if place < self.words else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.head, *self.rows)
        ]
        rule = "-" * len(_GAP.join("-" * width for width in widths))
        return "\n".join([lines[0], rule, *lines[1:], *self.foot])

    def to_html(self) -> str:
        """Returns it as HTML that takes a page's own colours."""
        sides = ["left" if n < self.words else "right" for n in range(len(self.head))]

        def row(kind: str, cells: Sequence[str]) -> str:
            pairs = zip(sides, cells, strict=True)
            parts = (f'<{kind} style="text-align:{side}">{escape(c)}</{kind}>' for side, c in pairs)
            return f"<tr>{''.join(parts)}</tr>"

        below = "".join(f"<p>{escape(line)}</p>" for line in self.foot)
        body = "".join(row("td", cells) for cells in self.rows)
        head = row("th", self.head)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{below}"


class Tabular(ABC):
    """A report that prints as a table: ``print`` in a terminal, by itself in a notebook."""

    @property
    @abstractmethod
    def table(self) -> Table:
        """The report in words."""

    def __str__(self) -> str:
        return self.table.to_text()

    def _repr_html_(self) -> str:
        return self.table.to_html()
