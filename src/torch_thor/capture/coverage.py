"""Which parameters are preconditioned, which not, and why."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.options.tables import Table, Tabular

if TYPE_CHECKING:
    from collections.abc import Iterator


class Treatment(enum.Enum):
    """How a parameter trains."""

    PRECONDITIONED = "preconditioned"
    BASE = "base rule"
    FROZEN = "not trained"


@dataclass(frozen=True)
class ParameterCoverage:
    """One line of the report.

    Args:
        name: Qualified name of the parameter.
        shape: Its shape.
        layer_type: Class of the module that owns it.
        treatment: How it trains.
        reason: Why, in words.
    """

    name: str
    shape: tuple[int, ...]
    layer_type: str
    treatment: Treatment
    reason: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Coverage(Tabular):
    """The report on a whole model; it prints as a table, and shows as one in a notebook.

    Args:
        parameters: One entry for every parameter of the model.
    """

    parameters: tuple[ParameterCoverage, ...]

    def __iter__(self) -> Iterator[ParameterCoverage]:
        return iter(self.parameters)

    def share(self, treatment: Treatment) -> float:
        """Share of the model's entries that train this way, in [0, 1]."""
        total = sum(entry.size for entry in self.parameters)
        return sum(e.size for e in self.parameters if e.treatment is treatment) / max(total, 1)

    @property
    def table(self) -> Table:
        """One row for every parameter."""
        rows = [
            (
                e.name,
                "x".join(map(str, e.shape)) or "scalar",
                e.layer_type,
                e.treatment.value,
                e.reason,
            )
            for e in self.parameters
        ]
        head = ("parameter", "shape", "layer", "trains by", "reason")
        totals = ", ".join(f"{t.value} {self.share(t):.1%}" for t in Treatment)
        return Table(head, rows, (f"entries: {totals}",), words=len(head))
