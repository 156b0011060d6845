"""THOR, KFAC and EKFAC: explicit signatures over one step engine, no logic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from torch_thor.coverage import Selector
from torch_thor.optimizer import Base, CurvatureOptimizer, Parameters
from torch_thor.options import Damping, NormControl, Refresh, Statistics, Update
from torch_thor.policies import TraceRule
from torch_thor.preconditioner import Preconditioner
from torch_thor.schedules import GrowingInterval, ScheduledFloat

_PAPER_ORDER = Update(nesterov=False, momentum_first=False, decoupled_decay=False)
_ALL_ROWS = Statistics(decay=0.95, rows=None)


class THOR(CurvatureOptimizer):
    """Trace-based, hardware-driven, layer-oriented natural gradient descent.

    Args:
        model: Model to train.
        params: Parameters or parameter groups; ``None`` takes all of the model's.
        lr: Learning rate, a number or a schedule over steps.
        momentum: Momentum factor.
        weight_decay: Weight decay of the preconditioned layers.
        damping: λ (relative to the factors' mean eigenvalues), a schedule, or a ``Damping``.
        split: Block size of both factors, ``"auto"`` (measured on this device), or
            ``None`` for whole factors.
        power: p of G^-p ∇W A^-p: 1/2, or the paper's 1.
        interval: Steps between refreshes, a number or a schedule.
        trace_rule: When a due layer is refreshed, kept or frozen; ``None`` always refreshes.
        norm_control: Length of each layer's step: ``"rms"``, ``"graft"``, ``"kl_clip"``,
            a ``NormControl``, or ``None``.
        update: Order of preconditioning, momentum and decay.
        statistics: How factors are estimated.
        refresh: Staggering and failure handling.
        base: First-order rule of all other parameters.
        exclude: Modules (names, with ``*`` as wildcard, or types) that train by the base rule.
        inverse_dtype: Type of inverses and products; ``None`` follows the factors.
        fused: As in ``torch.optim.SGD``, for the base rule.

    Raises:
        InvalidOptionError: For a value out of range.

    Example:
        >>> optimizer = THOR(model, lr=0.05)
        >>> loss_fn(model(inputs), targets).backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        params: Parameters | None = None,
        *,
        lr: ScheduledFloat = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.05,
        damping: ScheduledFloat | Damping = 3e-4,
        split: int | Literal["auto"] | None = 72,
        power: float = 0.5,
        interval: ScheduledFloat = GrowingInterval(20, 1.2),
        trace_rule: TraceRule | None = None,
        norm_control: NormControl | Literal["kl_clip", "graft", "rms"] | None = "rms",
        update: Update = Update(),
        statistics: Statistics = Statistics(),
        refresh: Refresh = Refresh(),
        base: Base = Base(),
        exclude: Iterable[Selector] = (),
        inverse_dtype: torch.dtype | None = None,
        fused: bool | None = None,
    ) -> None:
        """Finds the layers, hangs the hooks and builds the parameter groups."""
        engine = Preconditioner(
            model,
            damping=damping,
            split=split,
            power=power,
            factor_interval=interval,
            trace_rule=trace_rule,
            norm_control=norm_control,
            statistics=statistics,
            refresh=refresh,
            exclude=exclude,
            inverse_dtype=inverse_dtype,
        )
        super().__init__(
            engine,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            update=update,
            base=base,
            fused=fused,
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
        refresh: Staggering and failure handling.
        base: First-order rule of all other parameters.
        exclude: Modules that train by the base rule.
        fused: As in ``torch.optim.SGD``, for the base rule.

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
        damping: ScheduledFloat | Damping = Damping(0.03, "both"),
        factor_interval: ScheduledFloat = 20,
        inverse_interval: ScheduledFloat = 20,
        norm_control: NormControl | Literal["kl_clip", "graft", "rms"] | None = None,
        statistics: Statistics = _ALL_ROWS,
        refresh: Refresh = Refresh(stagger=False),
        base: Base = Base(),
        exclude: Iterable[Selector] = (),
        fused: bool | None = None,
    ) -> None:
        """Finds the layers, hangs the hooks and builds the parameter groups."""
        engine = Preconditioner(
            model,
            damping=damping,
            split=None,
            power=1.0,
            factor_interval=factor_interval,
            inverse_interval=inverse_interval,
            norm_control=norm_control,
            statistics=statistics,
            refresh=refresh,
            exclude=exclude,
            eigenvalue_correction=self._eigenvalue_correction,
        )
        super().__init__(
            engine,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            update=_PAPER_ORDER,
            base=base,
            fused=fused,
        )


class EKFAC(KFAC):
    """Eigenvalue-corrected K-FAC (George et al. 2018), unsplit; arguments as ``KFAC``.

    The second moments of the gradient in the factors' eigenbasis take the place of the
    products of eigenvalues, and are renewed whenever the factors are.
    """

    _eigenvalue_correction = True
