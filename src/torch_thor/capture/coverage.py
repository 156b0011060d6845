"""Which parameters are preconditioned, which not, and why."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch_thor.capture.names import own_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


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
        result = 1
        for length in self.shape:
            result *= length
        return result


@dataclass(frozen=True)
class Coverage:
    """The report on a whole model; ``str()`` prints it as a table.

    Args:
        parameters: One entry for every parameter of the model.
    """

    parameters: tuple[ParameterCoverage, ...]

    def __iter__(self) -> Iterator[ParameterCoverage]:
        """Iterates over the entries."""
        return iter(self.parameters)

    def share(self, treatment: Treatment) -> float:
        """Share of the model's entries that train this way, in [0, 1]."""
        total = sum(entry.size for entry in self.parameters)
        return sum(e.size for e in self.parameters if e.treatment is treatment) / max(total, 1)

    def __str__(self) -> str:
        """Renders a table with totals."""
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
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        totals = ", ".join(f"{t.value} {self.share(t):.1%}" for t in Treatment)
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], f"entries: {totals}"])


def as_seen(
    coverage: Coverage, model: nn.Module, reasons: Mapping[nn.Parameter, str], foreign: int
) -> Coverage:
    """Corrects a survey by what the hooks have seen since.

    Args:
        coverage: What was found in the model.
        model: The model.
        reasons: Why parameters of tracked layers step by the base rule so far.
        foreign: Parameters that the optimizer steps and that are not the model's.
    """
    named = own_parameters(model)
    entries = [
        replace(entry, treatment=Treatment.BASE, reason=reasons[named[entry.name]])
        if named[entry.name] in reasons
        else entry
        for entry in coverage
    ]
    if foreign:
        why = f"{foreign} parameters of the groups are not the model's"
        entries.append(ParameterCoverage("(others)", (), "", Treatment.BASE, why))
    return Coverage(tuple(entries))
