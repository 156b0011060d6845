"""THOR, KFAC and EKFAC: explicit signatures over one step engine, no logic."""

from __future__ import annotations

import warnings
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
from torch_thor.options.defaults import PAPER, PAPER_ORDER, SCALE_FREE, defaults_for
from torch_thor.options.distributed import Distributed
from torch_thor.options.norm_control import NormControl, NormControlKind, as_norm_control
from torch_thor.options.update import Base, BaseRule, Update, as_base
from torch_thor.update.optimizer import CurvatureOptimizer, Parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from torch_thor.capture.selection import Selector
    from torch_thor.options.schedules import ScheduledFloat
    from torch_thor.options.trace_rule import TraceRule

_ALL_ROWS = Statistics(decay=0.95, rows=None)


class THOR(CurvatureOptimizer):
    """Trace-based, hardware-driven, layer-oriented natural gradient descent.

    ``THOR(model)`` is the line to begin with: neither the loss nor the data change the length of a
    layer's step, so one rate trains unlike tasks. ``THOR(model, lr=..., norm_control="graft")``
    takes steps as long as SGD's at that rate, which has to be known to train the task.
    ``THOR.paper(model)`` is the paper's method.

    Where an argument is ``None``, the norm control says what fits:

    | | ``"spectral"``, ``"rms"`` | ``"graft"``, ``"kl_clip"``, ``None`` |
    |---|---|---|
    | ``lr`` | 0.03, ``"rms"`` 0.02 | 0.1 |
    | ``weight_decay`` | 0.05, decoupled | 5e-4, added to the direction |
    | ``damping`` | 0.01 | 3e-4 |
    | ``interval`` | 10 | from 20 on, growing by 1.2 |
    | ``statistics`` | 256 rows | 1024 rows |
    | ``refresh`` | all layers at once | layers in turn |
    | ``base`` | AdamW at 0.15 of the rate, without decay; Muon's rule for matrices | SGD |

    ``base`` then takes output layers, and with ``"spectral"`` biases, too. Rates of ``"spectral"``
    fall by themselves while steps overshoot, see ``Update``.

    Args:
        model: Model to train.
        params: Parameters or parameter groups; ``None`` takes all of the model's.
        lr: Learning rate, a number or a schedule over steps. With a fixed length of steps an entry
            has root mean square lr / √columns.
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
        norm_control: Length of each layer's step: ``"spectral"``, ``"rms"``, ``"graft"``,
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
        >>> optimizer = THOR(model)
        >>> loss_fn(model(inputs), targets).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        params: Parameters | None = None,
        *,
        lr: ScheduledFloat | None = None,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        damping: ScheduledFloat | Damping | None = None,
        split: int | MeasuredSplit | None = 72,
        power: float = 0.5,
        interval: ScheduledFloat | Intervals | None = None,
        trace_rule: TraceRule | None = None,
        norm_control: NormControl | NormControlKind | None = "spectral",
        update: Update | None = None,
        statistics: Statistics | None = None,
        refresh: Refresh | None = None,
        base: Base | BaseRule | None = None,
        exclude: Selector | Iterable[Selector] = (),
        include: Selector | Iterable[Selector] = (),
        distributed: Distributed = Distributed(),
    ) -> None:
        """Finds the layers, hangs the hooks and builds the parameter groups."""
        control = as_norm_control(norm_control)
        it = defaults_for(control).with_said(
            lr=lr,
            weight_decay=weight_decay,
            damping=damping,
            interval=interval,
            update=update,
            statistics=statistics,
            refresh=refresh,
            base=base,
        )
        options = CurvatureOptions(
            damping=as_damping(it.damping),
            split=split,
            power=power,
            intervals=as_intervals(it.interval),
            trace_rule=trace_rule,
            statistics=it.statistics,
            refresh=it.refresh,
            exclude=as_selectors("exclude", exclude),
            include=as_selectors("include", include),
            eigenvalue_correction=False,
            distributed=distributed,
            base=as_base(it.base),
        )
        super().__init__(
            CurvatureEngine(model, options),
            params,
            lr=it.lr,
            momentum=momentum,
            weight_decay=it.weight_decay,
            norm_control=control,
            update=it.update,
            base=it.base,
        )

    @classmethod
    def paper(cls, model: nn.Module, params: Parameters | None = None, **said: Any) -> Self:
        """Builds the paper's method by the letter of its equations.

        Inverses, not roots, of the last batch's factors over all rows; λ = 0.03 on both (eq. 6);
        eq. 8 and 9 with ω1 = 0.01, and nothing freezes; intervals grow from 20 on; no control of
        lengths; momentum over preconditioned gradients; SGD for all else; learning rate 0.05.

        Args:
            model: Model to train.
            params: Parameters or parameter groups; ``None`` takes all of the model's.
            said: Arguments of ``THOR`` that hold in the place of these, such as THOR_stop's
                ``trace_rule=TraceRule(0.01, 0.001, "product")``. λ alone is added to both factors.

        Raises:
            InvalidOptionError: For a value out of range.
        """
        options = {**PAPER, **said}
        return cls(model, params, **{**options, "damping": as_damping(options["damping"], "both")})

    @classmethod
    def scale_free(cls, model: nn.Module, params: Parameters | None = None, **said: Any) -> Self:
        """Builds what served tasks without a known rate before ``THOR(model)`` did; deprecated.

        Args:
            model: Model to train.
            params: Parameters or parameter groups; ``None`` takes all of the model's.
            said: Arguments of ``THOR``.

        Raises:
            InvalidOptionError: For a value out of range.
        """
        warnings.warn(
            "THOR.scale_free is deprecated. Build THOR(model), which trains better without a known "
            'rate; to keep these steps, say norm_control="rms" and the options in docs/usage.md.',
            DeprecationWarning,
            stacklevel=2,
        )
        return cls(model, params, **{**SCALE_FREE, **said})


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
            update=PAPER_ORDER,
            base=base,
        )


class EKFAC(KFAC):
    """Eigenvalue-corrected K-FAC (George et al. 2018), unsplit; arguments as ``KFAC``.

    The second moments of the gradient in the factors' eigenbasis take the place of the
    products of eigenvalues, and are renewed whenever the factors are.
    """

    _eigenvalue_correction = True
