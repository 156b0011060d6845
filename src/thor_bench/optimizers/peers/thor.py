"""torch_thor.THOR: its options as settings, and the recipes that train best here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.options import Derived, Options, defaults
from thor_bench.optimizers.peer import Peer, Recipe, Training
from thor_bench.optimizers.settings import Count, Fraction, Positive, Settings
from torch_thor import (
    THOR,
    Base,
    Damping,
    ExponentialDamping,
    GrowingInterval,
    NormControl,
    Refresh,
    Statistics,
    TraceRule,
    Update,
)

# Recipes are changes to the steps of SGD's length; what nothing tunes is ``untuned``.
_DEFAULTS = defaults(THOR)
_GROUPS = {
    "damping": Options(Damping(3e-4), damping="value", damping_mode="mode"),
    "interval": Options(GrowingInterval(20, 1.2), "growth", interval="start"),
    "trace_rule": Options(
        TraceRule(math.inf, 0.0),  # so that any threshold may stand beside it
        *("update_above", "freeze_below", "damped_trace"),
        unless="update_above",
        rule_compares="compare",
    ),
    "norm_control": Options(
        NormControl("graft"),
        "row_decay",
        unless="norm_control",
        norm_control="kind",
    ),
    "statistics": Options(Statistics(), "decay", "rows", "fisher"),
    "update": Options(Update(), "nesterov", "momentum_first", "decoupled_decay", "overshoot"),
    "base": Options(
        Base(),
        base="rule",
        base_lr_scale="lr_scale",
        base_weight_decay="weight_decay",
        base_outputs="outputs",
        base_biases="biases",
        base_matrices="matrices",
    ),
    "refresh": Options(Refresh(inverse_dtype="auto"), "stagger", "inverse_dtype"),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class _THORSettings(Settings):
    """Arguments that are no group, and what only the bench knows.

    Attributes:
        damping_rate: ρ of eq. 15: λ is multiplied by it every ten epochs.
        exclude_head: Whether the last linear layer or convolution trains by the base rule.
        include_norms: Whether normalization layers are preconditioned too.
    """

    momentum: Fraction = _DEFAULTS["momentum"]
    split: Count | Literal["auto", "per_layer"] | None = _DEFAULTS["split"]
    power: Annotated[float, Field(gt=0, le=1)] = _DEFAULTS["power"]
    damping_rate: Positive = 1.0
    exclude_head: bool = False
    include_norms: bool = False


_DERIVED = Derived(THOR, _THORSettings, _GROUPS, update_above=None)
THORSettings = _DERIVED.settings


def build(training: Training, settings: Any) -> Sequence[Optimizer]:
    """Builds it with every argument that the settings give.

    Raises:
        BenchError: Rows are to be evened without a norm control.
    """
    if settings.row_decay is not None and settings.norm_control is None:
        message = f"row_decay={settings.row_decay:g} needs a norm_control; try norm_control=rms"
        raise BenchError(message)
    arguments = _DERIVED.arguments(training, settings)
    if settings.damping_rate != 1.0:
        falling = ExponentialDamping(
            settings.damping, settings.damping_rate, training.steps_per_epoch
        )
        arguments["damping"] = replace(arguments["damping"], value=falling)
    modules = list(training.model.named_modules())
    head = training.head if settings.exclude_head else None
    norms = _NORMS if settings.include_norms else ()
    return [
        THOR(
            training.model,
            exclude=[*(name for name, module in modules if module is head), *training.exclude],
            include=[name for name, module in modules if isinstance(module, norms)],
            **arguments,
        )
    ]


# A fixed root mean square has a rate of its own, so the base rule's stands beside it, as with Muon.
_RMS = "norm_control=rms decoupled_decay=yes"
_SCALE_FREE = (
    f"{_RMS} lr=0.02 weight_decay=0.05 damping=0.01 interval=10 base=adamw base_lr_scale=0.15 "
    "base_weight_decay=0"
)
_UNTUNED = (
    f"{_SCALE_FREE} norm_control=spectral lr=0.03 overshoot=0.85 growth=1 rows=256 stagger=no "
    "base_outputs=yes base_biases=yes base_matrices=muon"
)
_DIGITS = (
    f"{_RMS} lr=0.0355 weight_decay=0.05 warmup=0.25 damping=0.42 split=128 power=1 interval=8 "
    "rows=256 base_lr_scale=1.9 base_weight_decay=5e-4"
)
_TABULAR = (
    f"{_RMS} lr=0.09 momentum=0.54 weight_decay=0.018 warmup=0.17 damping=0.003 split=32 "
    "interval=24 row_decay=0.8 rows=none stagger=no"
)
_FASHION = (
    f"{_RMS} lr=0.02 weight_decay=0.05 warmup=0.05 damping=1e-3 split=none row_decay=0.95 "
    "base_lr_scale=25 base_weight_decay=0 exclude_head=yes"
)
_AUTOENCODER = (
    f"{_RMS} lr=0.01 weight_decay=0 damping=0.01 interval=5 split=128 base=adamw base_lr_scale=0.1"
)
_TEXT = (
    f"{_SCALE_FREE} norm_control=spectral lr=0.03 damping=1e-4 interval=5 split=128 "
    "exclude_head=yes"
)

PEERS = (
    Peer(
        "thor",
        "THOR as tuned here",
        THORSettings(),
        build,
        ours=True,
        untuned=_UNTUNED,
        recipes={
            "digits": Recipe(_DIGITS, 2),
            "tabular": Recipe(_TABULAR, 6.25, 256),  # at the batch that its search found best
            "fashion": Recipe(_FASHION, 2.75),
            "fashion-autoencoder": Recipe(_AUTOENCODER, 3),
            "text-gpt": Recipe(_TEXT, 2),
        },
    ),
)
