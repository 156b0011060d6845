"""Everything that the engine is told."""

from dataclasses import dataclass
from typing import Annotated

from torch_thor.capture.selection import Selector
from torch_thor.options.checks import NATURAL, Checked
from torch_thor.options.curvature import Damping, Intervals, MeasuredSplit, Refresh, Statistics
from torch_thor.options.distributed import Distributed
from torch_thor.options.errors import require
from torch_thor.options.trace_rule import TraceRule
from torch_thor.options.update import Base


@dataclass(frozen=True)
class CurvatureOptions(Checked):
    """Everything that the engine is told, under the names that ``Preconditioner`` explains.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    damping: Damping
    split: Annotated[int, NATURAL] | MeasuredSplit | None
    power: float
    intervals: Intervals
    trace_rule: TraceRule | None
    statistics: Statistics
    refresh: Refresh
    exclude: tuple[Selector, ...]
    include: tuple[Selector, ...]
    eigenvalue_correction: bool
    distributed: Distributed = Distributed()
    base: Base = Base()  # for what it takes of the layers

    def __post_init__(self) -> None:
        super().__post_init__()
        require("power", self.power, self.power in (0.5, 1.0), "1 or 1/2")
