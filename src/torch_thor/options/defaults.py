"""What THOR's options are where nothing is said: it depends on what sets a step's length."""

from dataclasses import dataclass, replace
from typing import Any, Self

from torch_thor.options.curvature import Damping, Intervals, Refresh, Statistics
from torch_thor.options.norm_control import NormControl
from torch_thor.options.schedules import GrowingInterval, ScheduledFloat
from torch_thor.options.trace_rule import TraceRule
from torch_thor.options.update import Base, BaseRule, Update


@dataclass(frozen=True)
class Defaults:
    """The options of ``THOR`` that a norm control has a say in, under its names for them."""

    lr: ScheduledFloat
    weight_decay: float
    damping: ScheduledFloat | Damping
    interval: ScheduledFloat | Intervals
    update: Update
    statistics: Statistics
    refresh: Refresh
    base: Base | BaseRule

    def with_said(self, **said: Any) -> Self:
        """Returns them with what was said, which is not ``None``, in their place."""
        return replace(self, **{name: it for name, it in said.items() if it is not None})


_OWN_RATE = Defaults(
    lr=0.03,
    weight_decay=0.05,
    damping=0.01,
    interval=10,
    update=Update(decoupled_decay=True, overshoot=0.85),
    statistics=Statistics(rows=256),
    # Ten small refreshes cost more than one of all layers, which is no long step.
    refresh=Refresh(stagger=False, inverse_dtype="auto"),
    base=Base("adamw", lr_scale=0.15, weight_decay=0.0, outputs=True, biases=True, matrices="muon"),
)
_BIASES_AS_COLUMNS = replace(
    _OWN_RATE,
    lr=0.02,
    update=Update(decoupled_decay=True),
    base=Base("adamw", lr_scale=0.15, weight_decay=0.0, outputs=True, matrices="muon"),
)
_RATE_OF_SGD = Defaults(
    lr=0.1,
    weight_decay=5e-4,
    damping=3e-4,
    interval=GrowingInterval(20, 1.2),
    update=Update(),
    statistics=Statistics(),
    refresh=Refresh(inverse_dtype="auto"),
    base=Base(),
)


def defaults_for(control: NormControl | None) -> Defaults:
    """Returns what fits steps of a fixed length, or those whose rate is SGD's."""
    if control is None or not control.fixes_length:
        return _RATE_OF_SGD
    return _OWN_RATE if control.turns else _BIASES_AS_COLUMNS


PAPER_ORDER = Update(nesterov=False, momentum_first=False, decoupled_decay=False)
PAPER: dict[str, Any] = {
    "lr": 0.05,
    "damping": 0.03,
    "power": 1.0,
    "trace_rule": TraceRule(update_above=0.01, freeze_below=0.0, damped_trace="product"),
    "norm_control": None,
    "update": PAPER_ORDER,
    "statistics": Statistics(decay=0.0, rows=None),
    "refresh": Refresh(stagger=False),
}
SCALE_FREE: dict[str, Any] = {
    "norm_control": "rms",
    "interval": GrowingInterval(10, 1.2),
    "statistics": Statistics(),
    "refresh": Refresh(inverse_dtype="auto"),
    "base": Base("adamw", lr_scale=0.15, weight_decay=0.0),
}
