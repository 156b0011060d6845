"""Everything that the engine is told."""

from dataclasses import dataclass
from typing import Annotated

from torch_thor.capture.selection import Selector
from torch_thor.options.checks import NATURAL, Checked
from torch_thor.options.curvature import Damping, Intervals, MeasuredSplit, Refresh, Statistics
from torch_thor.options.distributed import Distributed
from torch_thor.options.errors import require
from torch_thor.options.trace_rule import TraceRule


@dataclass(frozen=True)
class CurvatureOptions(Checked):
    """Everything that the engine is told, see ``Preconditioner``.

    Args:
        damping: λ and how it enters.
        split: Block size of both factors, ``"auto"``, ``"per_layer"`` or ``None``.
        power: p of the inverse root.
        intervals: Steps between updates of factors and inverses.
        trace_rule: When a due layer is refreshed, kept or frozen.
        statistics: How factors are estimated.
        refresh: Staggering, type of the inverses, failure handling.
        exclude: Modules left alone.
        include: Modules of types that are left alone unless asked for.
        eigenvalue_correction: EKFAC's eigenvalue-corrected basis.
        distributed: How ranks share the curvature.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        require("power", self.power, self.power in (0.5, 1.0), "1 or 1/2")
