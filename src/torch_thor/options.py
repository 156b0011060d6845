"""Frozen, self-validating groups of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from torch_thor.checks import (
    AT_LEAST_ONE,
    DAMPING,
    POSITIVE,
    SHARE,
    check_types,
    require_number,
    require_type,
)
from torch_thor.errors import InvalidOptionError, require
from torch_thor.schedules import ScheduledFloat  # noqa: TC001 (read by check_types)

MeasuredSplit = Literal["auto", "per_layer"]
DampingMode = Literal["both", "sqrt", "pi", "relative"]
LossReduction = Literal["mean", "positions_mean", "sum"]
WeightSharing = Literal["expand", "reduce"]
FisherKind = Literal["empirical", "mc"]
NormFisher = Literal["unit_wise", "diagonal"]
NormControlKind = Literal["kl_clip", "graft", "rms", "spectral"]
OnNonFinite = Literal["skip", "raise", "ignore"]


def _require_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidOptionError(name, value, "one of " + ", ".join(map(repr, allowed)))


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
        _require_choice("damping mode", self.mode, DampingMode)
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
        _require_choice("fisher", self.fisher, FisherKind)
        _require_choice("weight_sharing", self.weight_sharing, WeightSharing)
        _require_choice("norm_fisher", self.norm_fisher, NormFisher)
        _require_choice("loss_reduction", self.loss_reduction, LossReduction)


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
class NormControl:
    """What sets the length of a preconditioned layer's step.

    Args:
        kind: ``"kl_clip"``: all layers scaled by min(1, √(limit / (lr² Σ⟨direction,
            gradient⟩))). ``"graft"``: each layer takes the norm of the vector that was
            preconditioned, so an SGD learning rate can be kept. ``"rms"``: each layer's
            update has root mean square ``limit / √columns``, as Muon's has. ``"spectral"``:
            the same length, after singular values have been made alike as Muon does it,
            here those of the preconditioned direction.
        limit: κ of the KL clip, or the scale of ``"rms"`` and ``"spectral"``; not used by
            ``"graft"``.
        per: What takes a length of its own: ``"layer"``, or ``"rows"``, the rows of each block
            of G (Distributed Shampoo grafts that way), which sharded weights need because no
            rank sees the whole layer. ``None`` takes ``"layer"`` wherever a rank does.
        iterations: Newton–Schulz iterations of ``"spectral"``.
        row_decay: Weight ρ of the old value in a running average of every row's mean square, by
            whose root the row is divided before lengths are set, so that output units step alike
            (NorMuon, Li et al. 2025); 0 takes this step's alone. ``None`` leaves rows as they
            are. Norms' own 2 × 2 matrices are always left so.

    Raises:
        InvalidOptionError: For an unknown kind or a value out of range.
    """

    kind: NormControlKind
    limit: float = 1.0
    per: Literal["layer", "rows"] | None = None
    iterations: int = 5
    row_decay: float | None = None

    def __post_init__(self) -> None:
        """Validates the options."""
        check_types(self, kind="norm_control")
        _require_choice("norm_control", self.kind, NormControlKind)
        require_number("limit", self.limit, POSITIVE)
        known = self.per in (None, "layer", "rows")
        require("per", self.per, known, "'layer', 'rows' or None")
        layers = self.kind not in ("graft", "rms") or self.row_decay is not None
        allowed = "None for what needs whole layers: KL clip, spectral, row_decay"
        require("per", self.per, not (layers and self.per == "rows"), allowed)
        require("iterations", self.iterations, self.iterations >= 1, ">= 1")
        decay = self.row_decay
        evens = decay is None or (0 <= decay < 1 and self.kind != "kl_clip")
        require("row_decay", decay, evens, "in [0, 1), or None; None with the KL clip")

    @property
    def needs_layers(self) -> bool:
        """Whether it needs whole layers, all rows of all blocks."""
        evens = self.row_decay is not None
        return self.kind in ("kl_clip", "spectral") or self.per == "layer" or evens


def as_norm_control(value: NormControl | NormControlKind | None) -> NormControl | None:
    """Accepts a kind's name in the place of a ``NormControl`` with its default limit."""
    require_type("norm_control", value, NormControl | NormControlKind | None)
    if value is None or isinstance(value, NormControl):
        return value
    return NormControl(value, 1e-3 if value == "kl_clip" else 1.0)


def check_norm_control(control: NormControl | None, *, sharded: bool) -> None:
    """Raises ``InvalidOptionError`` where no rank sees what a norm control needs."""
    if control is not None and sharded and control.needs_layers:
        allowed = (
            "'graft' or 'rms' per 'rows' without row_decay, or None: no rank has a whole layer of "
            "this model"
        )
        raise InvalidOptionError("norm_control", control, allowed)


@dataclass(frozen=True)
class Update:
    """Order of preconditioning, momentum and weight decay.

    Args:
        nesterov: Nesterov's momentum.
        momentum_first: Momentum of the raw gradient is preconditioned at every step,
            in place of momentum over preconditioned gradients (the paper's order).
        decoupled_decay: Weight decay shrinks the weights by lr · decay, as in AdamW, in
            place of being added to the direction before the momentum that follows it (the
            authors' order). With ``momentum_first`` no momentum follows, and both agree.
    """

    nesterov: bool = True
    momentum_first: bool = True
    decoupled_decay: bool = False

    def __post_init__(self) -> None:
        """Validates the options."""
        check_types(self)


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
        _require_choice("on_nonfinite", self.on_nonfinite, OnNonFinite)
