"""THOR, KFAC and EKFAC: explicit signatures over one step engine, no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch_thor.capture.selection import as_selectors
from torch_thor.curvature.engine import CurvatureEngine
from torch_thor.curvature.options import CurvatureOptions
from torch_thor.options.curvature import (
    Damping,
    Intervals,
    MeasuredSplit,
    Refresh,
    Statistics,
    as_damping,
    as_intervals,
)
from torch_thor.options.distributed import Distributed
from torch_thor.options.schedules import GrowingInterval, ScheduledFloat
from torch_thor.options.update import Base, BaseRule, Update, as_base
from torch_thor.update.optimizer import CurvatureOptimizer, Parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from torch_thor.capture.selection import Selector
    from torch_thor.options.norm_control import NormControl, NormControlKind
    from torch_thor.options.trace_rule import TraceRule

_PAPER_ORDER = Update(nesterov=False, momentum_first=False, decoupled_decay=False)
_ALL_ROWS = Statistics(decay=0.95, rows=None)
_SCALE_FREE: dict[str, Any] = {
    "norm_control": "rms",
    "update": Update(decoupled_decay=True),
    "base": Base("adamw", lr_scale=0.15, weight_decay=0.0),
}


class THOR(CurvatureOptimizer):
    """Trace-based, hardware-driven, layer-oriented natural gradient descent.

    ``THOR.scale_free(model)`` is the line to begin with. ``THOR(model, lr=...)`` takes steps as
    long as SGD's at that rate, so it wants a rate that is known to train the task, and is unsafe
    without one: on summed losses, PINNs, GANs, VAEs, RNNs and transformers.

    Args:
        model: Model to train.
        params: Parameters or parameter groups; ``None`` takes all of the model's.
        lr: Learning rate, a number or a schedule over steps.
        momentum: Momentum factor.
        weight_decay: Weight decay of the groups without one of their own.
        damping: λ (relative to the factors' mean eigenvalues), a schedule, or a ``Damping``.
        split: Block size of both factors; ``"auto"``, one size measured on this device;
            ``"per_layer"``, sizes of A and G for every shape of a layer, see ``layer_splits``;
            or ``None`` for whole factors.
        power: p of G^-p ∇W A^-p: 1/2, or the paper's 1.
        interval: Steps between refreshes, a number or a schedule, or ``Intervals`` where
            factors and inverses have different ones.
        trace_rule: When a due layer is refreshed, kept or frozen; ``None`` always refreshes.
        norm_control: Length of each layer's step: ``"graft"``, ``"rms"``, ``"spectral"``,
            ``"kl_clip"``, a ``NormControl``, or ``None``.
        update: Order of preconditioning, momentum and decay.
        statistics: How factors are estimated.
        refresh: Staggering, type of the inverses, failure handling.
        base: First-order rule of all other parameters: ``"sgd"``, ``"adamw"`` or a ``Base``.
        exclude: Modules (names, with ``*`` as wildcard, or types) that train by the base rule, with
            all that they hold.
        include: The same for types that do so unless asked for: embeddings and norms.
        distributed: How the ranks of a data-parallel run share the curvature.

    Raises:
        InvalidOptionError: For a value out of range.

    Example:
        >>> optimizer = THOR.scale_free(model)
        >>> loss_fn(model(inputs), targets).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        params: Parameters | None = None,
        *,
        lr: ScheduledFloat = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        damping: ScheduledFloat | Damping = 3e-4,
        split: int | MeasuredSplit | None = 72,
        power: float = 0.5,
        interval: ScheduledFloat | Intervals = GrowingInterval(20, 1.2),
        trace_rule: TraceRule | None = None,
        norm_control: NormControl | NormControlKind | None = "graft",
        update: Update = Update(),
        statistics: Statistics = Statistics(),
        refresh: Refresh = Refresh(inverse_dtype="auto"),
        base: Base | BaseRule = Base(),
        exclude: Selector | Iterable[Selector] = (),
        include: Selector | Iterable[Selector] = (),
        distributed: Distributed = Distributed(),
    ) -> None:
        """Finds the layers, hangs the hooks and builds the parameter groups."""
        options = CurvatureOptions(
            damping=as_damping(damping),
            split=split,
            power=power,
            intervals=as_intervals(interval),
            trace_rule=trace_rule,
            statistics=statistics,
            refresh=refresh,
            exclude=as_selectors("exclude", exclude),
            include=as_selectors("include", include),
            eigenvalue_correction=False,
            distributed=distributed,
            base=as_base(base),
        )
        super().__init__(
            CurvatureEngine(model, options),
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            norm_control=norm_control,
            update=update,
            base=base,
        )

    @classmethod
    def scale_free(
        cls,
        model: nn.Module,
        params: Parameters | None = None,
        *,
        lr: ScheduledFloat = 0.02,
        weight_decay: float = 0.05,
        damping: ScheduledFloat | Damping = 0.01,
        split: int | MeasuredSplit | None = 72,
        interval: ScheduledFloat | Intervals = GrowingInterval(10, 1.2),
        statistics: Statistics = Statistics(),
        exclude: Selector | Iterable[Selector] = (),
        include: Selector | Iterable[Selector] = (),
        distributed: Distributed = Distributed(),
    ) -> Self:
        """Builds THOR for a task without a known learning rate of SGD's.

        Neither the loss nor the data change the length of a layer's step (``"rms"``), and all
        without curvature step by AdamW at 0.15 of the rate, 0.003 at first.

        Args:
            model: Model to train.
            params: Parameters or parameter groups; ``None`` takes all of the model's.
            lr: Learning rate: an entry of a step has a root mean square of lr / √columns.
            weight_decay: Decoupled decay of the preconditioned layers, and of groups that say so.
            damping: As in ``THOR``.
            split: As in ``THOR``.
            interval: As in ``THOR``.
            statistics: As in ``THOR``.
            exclude: As in ``THOR``; a language model's head trains better by AdamW.
            include: As in ``THOR``.
            distributed: As in ``THOR``.

        Raises:
            InvalidOptionError: For a value out of range.
        """
        return cls(
            model,
            params,
            lr=lr,
            weight_decay=weight_decay,
            damping=damping,
            split=split,
            interval=interval,
            statistics=statistics,
            exclude=exclude,
            include=include,
            distributed=distributed,
            **_SCALE_FREE,
        )


class KFAC(CurvatureOptimizer):
    """Kronecker-factored approximate curvature (Martens and Grosse 2015), unsplit.

    Args:
        model: Model to train.
        params: Parameters or parameter groups; ``None`` takes all of the model's.
        lr: Learning rate, a number or a schedule over steps.
        momentum: Momentum factor, over preconditioned gradients.
        weight_decay: Weight decay, added to the preconditioned gradient.
        damping: λ added to each factor (eq. 6), a schedule, or a ``Damping``.
        factor_interval: Steps between updates of the factors.
        inverse_interval: Steps between refreshes of the inverses.
        norm_control: Length of each layer's step.
        statistics: How factors are estimated.
        refresh: Staggering, type of the inverses, failure handling.
        base: First-order rule of all other parameters: ``"sgd"``, ``"adamw"`` or a ``Base``.
        exclude: Modules that train by the base rule.
        include: Modules that do so unless asked for: embeddings and norms.
        distributed: How the ranks of a data-parallel run share the curvature.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    _eigenvalue_correction = False

    def __init__(
        self,
        model: nn.Module,
        params: Parameters | None = None,
        *,
        lr: ScheduledFloat = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        damping: ScheduledFloat | Damping = 0.03,
        factor_interval: ScheduledFloat = 20,
        inverse_interval: ScheduledFloat = 20,
        norm_control: NormControl | NormControlKind | None = "graft",
        statistics: Statistics = _ALL_ROWS,
        refresh: Refresh = Refresh(stagger=False),
        base: Base | BaseRule = Base(),
        exclude: Selector | Iterable[Selector] = (),
        include: Selector | Iterable[Selector] = (),
        distributed: Distributed = Distributed(),
    ) -> None:
        """Finds the layers, hangs the hooks and builds the parameter groups."""
        options = CurvatureOptions(
            damping=as_damping(damping, "both"),
            split=None,
            power=1.0,
            intervals=Intervals(factor_interval, inverse_interval),
            trace_rule=None,
            statistics=statistics,
            refresh=refresh,
            exclude=as_selectors("exclude", exclude),
            include=as_selectors("include", include),
            eigenvalue_correction=self._eigenvalue_correction,
            distributed=distributed,
            base=as_base(base),
        )
        super().__init__(
            CurvatureEngine(model, options),
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            norm_control=norm_control,
            update=_PAPER_ORDER,
            base=base,
        )


class EKFAC(KFAC):
    """Eigenvalue-corrected K-FAC (George et al. 2018), unsplit; arguments as ``KFAC``.

    The second moments of the gradient in the factors' eigenbasis take the place of the
    products of eigenvalues, and are renewed whenever the factors are.
    """

    _eigenvalue_correction = True
