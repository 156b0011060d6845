"""How curvature is estimated, damped and refreshed: frozen groups that check themselves."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from torch_thor.options.checks import (
    AT_LEAST_ONE,
    COUNT,
    DAMPING,
    NATURAL,
    SHARE,
    Checked,
    check_types,
)
from torch_thor.options.errors import require
from torch_thor.options.schedules import Schedule, ScheduledFloat

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

    value: Annotated[float, DAMPING] | Schedule = 3e-4
    mode: DampingMode = "relative"

    def __post_init__(self) -> None:
        check_types(self, value="damping", mode="damping mode")


@dataclass(frozen=True)
class Statistics(Checked):
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

    decay: Annotated[float, SHARE] = 0.8
    rows: Annotated[int, NATURAL] | None = 1024
    fisher: FisherKind = "empirical"
    weight_sharing: WeightSharing = "expand"
    norm_fisher: NormFisher = "unit_wise"
    loss_reduction: LossReduction = "mean"
    seed: int = 0


@dataclass(frozen=True)
class Intervals:
    """T_FIM and T_INV of Algorithm 1, each a number of steps or a schedule.

    Args:
        factors: Steps between updates of the factors.
        inverses: Steps between decisions of the trace rule, and refreshes of the inverses.
    """

    factors: Annotated[float, AT_LEAST_ONE] | Schedule
    inverses: Annotated[float, AT_LEAST_ONE] | Schedule

    def __post_init__(self) -> None:
        check_types(self, factors="interval", inverses="interval")


@dataclass(frozen=True)
class Refresh(Checked):
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
    tolerated_failures: Annotated[int, COUNT] = 5
    on_nonfinite: OnNonFinite = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        dtype = self.inverse_dtype
        valid = not isinstance(dtype, torch.dtype) or dtype.is_floating_point
        require("inverse_dtype", dtype, valid, "a floating torch.dtype, 'auto' or None")


def as_damping(value: ScheduledFloat | Damping, mode: DampingMode = "relative") -> Damping:
    """Accepts λ alone in the place of a ``Damping``."""
    return value if isinstance(value, Damping) else Damping(value, mode)


def as_intervals(value: ScheduledFloat | Intervals) -> Intervals:
    """Accepts one interval for factors and inverses."""
    return value if isinstance(value, Intervals) else Intervals(value, value)


def balanced_damping(value: float) -> Damping:
    """Shares λ of the whole A ⊗ G out between both, as Martens and Grosse do."""
    return Damping(value, "pi")
