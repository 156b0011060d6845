"""Frozen, self-validating groups of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from torch_thor.options.checks import (
    AT_LEAST_ONE,
    DAMPING,
    SHARE,
    check_types,
    require_choice,
    require_number,
)
from torch_thor.options.errors import require
from torch_thor.options.schedules import ScheduledFloat  # noqa: TC001 (read by check_types)

MeasuredSplit = Literal["auto", "per_layer"]
DampingMode = Literal["both", "sqrt", "pi", "relative"]
LossReduction = Literal["mean", "positions_mean", "sum"]
WeightSharing = Literal["expand", "reduce"]
FisherKind = Literal["empirical", "mc"]
NormFisher = Literal["unit_wise", "diagonal"]
OnNonFinite = Literal["skip", "raise", "ignore"]


@dataclass(frozen=True)
class Damping:
    """Damping λ and how it enters the factors A (d_A rows) and G (d_G rows).

    Args:
        value: λ, a number or a schedule.
        mode: ``"both"``: A + λI and G + λI (paper, eq. 6). ``"sqrt"``: √λ on each (the
            authors' code). ``"pi"``: π√λ on A and √λ/π on G, π² = (tr A/d_A)/(tr G/d_G)
            (Martens and Grosse 2015, sec. 6.3). ``"relative"``: λ times the mean
            eigenvalue of each factor, so that no scale of loss or data matters. The
            unit-wise Fisher of a norm is one factor and takes λ (times its mean
            eigenvalue where ``"relative"``) itself.

    Raises:
        InvalidOptionError: For a negative value or an unknown mode.
    """

    value: ScheduledFloat = 3e-4
    mode: DampingMode = "relative"

    def __post_init__(self) -> None:
        """Validates the options."""
        check_types(self, value="damping", mode="damping mode")
        require_choice("damping mode", self.mode, DampingMode)
        if not callable(self.value):
            require_number("damping", self.value, DAMPING)


@dataclass(frozen=True)
class Statistics:
    """How the factors A and G are estimated.

    Args:
        decay: Weight ρ of the old running average at each update; 0 keeps the last batch.
        rows: Rows (sample × position) taken per layer and call; ``None`` takes all.
        fisher: ``"empirical"`` takes the gradients of the training loss; ``"mc"`` those of
            labels that ``optimizer.sample_fisher(outputs)`` draws from the model.
        weight_sharing: ``"expand"`` treats positions as further samples, ``"reduce"``
            averages inputs and sums gradients over them (Eschenhagen et al. 2023).
        norm_fisher: Fisher of the norms that ``include`` names, exact over the samples:
            ``"unit_wise"`` is a 2×2 block for each channel's scale and shift (SP-NGD),
            ``"diagonal"`` leaves out what they share.
        loss_reduction: How the loss reduces over the samples of a step: ``"mean"``,
            ``"positions_mean"`` (over samples and positions, language models) or ``"sum"``.
        seed: Seed of the row choice.

    Raises:
        InvalidOptionError: For values out of range.
    """

    decay: float = 0.8
    rows: int | None = 1024
    fisher: FisherKind = "empirical"
    weight_sharing: WeightSharing = "expand"
    norm_fisher: NormFisher = "unit_wise"
    loss_reduction: LossReduction = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        """Validates the options."""
        check_types(self)
        require_number("decay", self.decay, SHARE)
        require("rows", self.rows, self.rows is None or self.rows >= 1, ">= 1, or None for all")
        require_choice("fisher", self.fisher, FisherKind)
        require_choice("weight_sharing", self.weight_sharing, WeightSharing)
        require_choice("norm_fisher", self.norm_fisher, NormFisher)
        require_choice("loss_reduction", self.loss_reduction, LossReduction)


@dataclass(frozen=True)
class Intervals:
    """T_FIM and T_INV of Algorithm 1, each a number of steps or a schedule.

    Args:
        factors: Steps between updates of the factors.
        inverses: Steps between decisions of the trace rule, and refreshes of the inverses.
    """

    factors: ScheduledFloat
    inverses: ScheduledFloat

    def __post_init__(self) -> None:
        """Validates the intervals."""
        check_types(self, factors="interval", inverses="interval")
        for value in (self.factors, self.inverses):
            if not callable(value):
                require_number("interval", value, AT_LEAST_ONE)


@dataclass(frozen=True)
class Refresh:
    """When curvature is refreshed, in which type, and what happens when numbers go wrong.

    Args:
        stagger: Spread the layers' refreshes over the interval, so that no step is long.
        inverse_dtype: Type of the stored inverses and of the products with gradients.
            ``None`` follows the factors (float32, or float64 for a float64 model);
            ``"auto"`` takes bfloat16 for large float32 layers where the hardware
            multiplies it natively.
        tolerated_failures: Failed inversions in a row of one layer before an error.
        on_nonfinite: What a gradient with NaN or Inf (or whose norm overflows) does:
            ``"skip"`` leaves the step out, ``"raise"`` raises ``NonFiniteGradientError``,
            ``"ignore"`` does not look (and saves a pass over the gradients).

    Raises:
        InvalidOptionError: For values out of range.
    """

    stagger: bool = True
    inverse_dtype: torch.dtype | Literal["auto"] | None = None
    tolerated_failures: int = 5
    on_nonfinite: OnNonFinite = "skip"

    def __post_init__(self) -> None:
        """Validates the options."""
        check_types(self)
        dtype = self.inverse_dtype
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        valid = floating or dtype in (None, "auto")
        require("inverse_dtype", dtype, valid, "a floating torch.dtype, 'auto' or None")
        require("tolerated_failures", self.tolerated_failures, self.tolerated_failures >= 0, ">= 0")
        require_choice("on_nonfinite", self.on_nonfinite, OnNonFinite)


def as_damping(value: ScheduledFloat | Damping, mode: DampingMode = "relative") -> Damping:
    """Accepts λ alone in the place of a ``Damping``."""
    return value if isinstance(value, Damping) else Damping(value, mode)


def as_intervals(value: ScheduledFloat | Intervals) -> Intervals:
    """Accepts one interval for factors and inverses."""
    return value if isinstance(value, Intervals) else Intervals(value, value)
