"""Everything that the engine is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch_thor.capture.selection import Selector  # noqa: TC001 (read by check_types)
from torch_thor.options.checks import check_types
from torch_thor.options.curvature import Damping, Intervals, MeasuredSplit, Refresh, Statistics
from torch_thor.options.distributed import Distributed
from torch_thor.options.errors import require
from torch_thor.options.trace_rule import TraceRule  # noqa: TC001 (read by check_types)


@dataclass(frozen=True)
class CurvatureOptions:
    """Everything that the engine is told, under the names that ``Preconditioner`` explains.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    damping: Damping
    split: int | MeasuredSplit | None
    power: float
    intervals: Intervals
    trace_rule: TraceRule | None
    statistics: Statistics
    refresh: Refresh
    exclude: tuple[Selector, ...]
    include: tuple[Selector, ...]
    eigenvalue_correction: bool
    distributed: Distributed = Distributed()

    def __post_init__(self) -> None:
        check_types(self)
        require("power", self.power, self.power in (0.5, 1.0), "1 or 1/2")
        split = self.split
        valid = (
            split in (None, *get_args(MeasuredSplit))
            if isinstance(split, str | None)
            else split >= 1
        )
        require("split", split, valid, "an int >= 1, 'auto', 'per_layer' or None")
