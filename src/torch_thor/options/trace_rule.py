"""The trace rule: whose curvature is refreshed, kept or frozen (paper, eq. 8 and 9)."""

import enum
from dataclasses import dataclass
from typing import Annotated, Literal

from torch_thor.options.checks import RATE, Checked
from torch_thor.options.errors import require


class Decision(enum.Enum):
    """What the trace rule says of one layer at one refresh (paper, eq. 9)."""

    UPDATE = "update"
    KEEP = "keep"
    FREEZE = "freeze"


@dataclass(frozen=True)
class LayerDecision:
    """One entry of ``optimizer.last_decisions``.

    Args:
        layer: Qualified name of the module.
        step: Step at which the decision was taken.
        decision: What was decided.
        change: Δ of eq. 8; ``inf`` at a layer's first refresh.
    """

    layer: str
    step: int
    decision: Decision
    change: float


@dataclass(frozen=True)
class TraceRule(Checked):
    """Trace rule (paper, eq. 8 and 9).

    Args:
        update_above: ω1; a relative change Δ above it refreshes the layer.
        freeze_below: ω2; a Δ below it freezes the layer for good. 0 never freezes.
        damped_trace: How tr(F + λI) is read. ``"factors"``: (tr A + λ n_A)(tr G + λ n_G),
            the trace of what is inverted; ``"product"``: tr A · tr G + λ n_A n_G,
            the letter of eq. 8.
        compare: ``"trace"`` (eq. 8), or ``"distance"``, the rule that the trace replaces:
            the larger of ‖X − X'‖ / ‖X'‖ (Frobenius) over X = A, G, where X' is the running
            average in use and X the same with this batch (Osawa et al. 2019; thresholds of
            0.1 are usual). It needs the matrices, so a layer that is kept pays for them.

    Raises:
        InvalidOptionError: Unless ``update_above >= freeze_below >= 0``, and for unknown names.
    """

    update_above: float = 0.01
    freeze_below: Annotated[float, RATE] = 0.001
    damped_trace: Literal["factors", "product"] = "factors"
    compare: Literal["trace", "distance"] = "trace"

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = self.update_above >= self.freeze_below
        allowed = f">= freeze_below ({self.freeze_below})"
        require("update_above", self.update_above, ordered, allowed)

    def decide(self, change: float) -> Decision:
        """Returns the decision for a relative change Δ (eq. 9)."""
        if change > self.update_above:
            return Decision.UPDATE
        if change < self.freeze_below:
            return Decision.FREEZE
        return Decision.KEEP
