"""How each optimizer is built for a model from its settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.requirements import lacks_muon
from thor_bench.optimizers.settings import (
    AdamWSettings,
    KFACSettings,
    MuonSettings,
    NormControlKind,
    SGDSettings,
    THORSettings,
)
from torch_thor import (
    EKFAC,
    KFAC,
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

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)

_INVERSE_DTYPES: dict[str | None, torch.dtype | Literal["auto"] | None] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    None: None,
}


@dataclass(frozen=True)
class Training:
    """What an optimizer is built for.

    Attributes:
        model: Model whose every parameter is to be trained.
        steps_per_epoch: Optimizer steps in one epoch, for schedules over epochs.
        loss_reduction: What the loss is a mean over.
    """

    model: nn.Module
    steps_per_epoch: int
    loss_reduction: Literal["mean", "positions_mean"] = "mean"


def _head(model: nn.Module) -> nn.Linear | None:
    """Returns the last linear layer of a model, which maps to its outputs."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _head_names(model: nn.Module) -> list[str]:
    head = _head(model)
    return [name for name, module in model.named_modules() if module is head]


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _NORMS)]


def build_sgd(training: Training, settings: SGDSettings) -> Sequence[Optimizer]:
    """Builds torch.optim.SGD over every parameter."""
    return [
        torch.optim.SGD(
            training.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov and settings.momentum > 0,
        )
    ]


def build_adamw(training: Training, settings: AdamWSettings) -> Sequence[Optimizer]:
    """Builds torch.optim.AdamW over every parameter."""
    return [
        torch.optim.AdamW(
            training.model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    ]


def build_muon(training: Training, settings: MuonSettings) -> Sequence[Optimizer]:
    """Builds Muon over hidden matrices and convolutions, and the rule of all the rest.

    Raises:
        BenchError: torch is too old for it.
    """
    if lacking := lacks_muon():
        raise BenchError(f"--optimizer muon {lacking}; update torch, or name another optimizer")
    from thor_bench.optimizers.muon import FlattenedMuon  # noqa: PLC0415 - extends what may be missing

    kept = _without_muon(training.model, settings)
    parameters = list(training.model.parameters())
    hidden = [p for p in parameters if p.dim() >= 2 and id(p) not in kept]
    chosen = {id(p) for p in hidden}
    rest = [p for p in parameters if id(p) not in chosen]
    muon = FlattenedMuon(
        hidden,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    return [muon, _rest_of_muon(rest, settings)] if rest else [muon]


def _without_muon(model: nn.Module, settings: MuonSettings) -> set[int]:
    """Returns the identities of the matrices that Muon is not meant for."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = _head(model) if settings.exclude_head else None
    return {id(module.weight) for module in (*modules, head) if module is not None}


def _rest_of_muon(rest: Sequence[nn.Parameter], settings: MuonSettings) -> Optimizer:
    if settings.rest == "adamw":
        return torch.optim.AdamW(
            rest,
            lr=settings.rest_lr,
            betas=Base("adamw").betas,
            weight_decay=settings.rest_weight_decay,
        )
    return torch.optim.SGD(
        rest,
        lr=settings.rest_lr,
        momentum=settings.momentum,
        weight_decay=settings.rest_weight_decay,
        nesterov=settings.momentum > 0,
    )


def build_thor(training: Training, settings: THORSettings) -> Sequence[Optimizer]:
    """Builds THOR with the settings' split, power, intervals and trace rule."""
    rule = None
    if settings.update_above is not None:
        rule = TraceRule(
            settings.update_above,
            settings.freeze_below,
            settings.damped_trace,
            settings.rule_compares,
        )
    return [
        THOR(
            training.model,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            damping=thor_damping(training, settings),
            split=settings.split,
            power=settings.power,
            interval=GrowingInterval(settings.interval, settings.growth),
            trace_rule=rule,
            norm_control=_norm_control(settings),
            update=Update(
                nesterov=settings.nesterov,
                momentum_first=settings.momentum_first,
                decoupled_decay=settings.decoupled_decay,
            ),
            statistics=replace(_statistics(training, settings), fisher=settings.fisher),
            refresh=Refresh(
                stagger=settings.stagger, inverse_dtype=_INVERSE_DTYPES[settings.inverse_dtype]
            ),
            base=Base(settings.base, settings.base_lr_scale, settings.base_weight_decay),
            exclude=_head_names(training.model) if settings.exclude_head else (),
            include=_norms(training.model) if settings.include_norms else (),
        )
    ]


def _norm_control(settings: THORSettings) -> NormControl | NormControlKind | None:
    kind = settings.norm_control
    if settings.row_decay is None:
        return kind
    if kind is None:
        message = f"row_decay={settings.row_decay:g} needs a norm_control; try norm_control=rms"
        raise BenchError(message)
    return NormControl(kind, row_decay=settings.row_decay)


def _statistics(training: Training, settings: THORSettings | KFACSettings) -> Statistics:
    return Statistics(
        decay=settings.decay, rows=settings.rows, loss_reduction=training.loss_reduction
    )


def thor_damping(training: Training, settings: THORSettings) -> Damping:
    """Returns λ, falling by eq. 15 where the settings ask for it."""
    if settings.damping_rate == 1.0:
        return Damping(settings.damping, settings.damping_mode)
    falling = ExponentialDamping(settings.damping, settings.damping_rate, training.steps_per_epoch)
    return Damping(falling, settings.damping_mode)


def build_kfac(training: Training, settings: KFACSettings) -> Sequence[Optimizer]:
    """Builds unsplit K-FAC at a fixed interval."""
    return [_kfac(KFAC, training, settings)]


def build_ekfac(training: Training, settings: KFACSettings) -> Sequence[Optimizer]:
    """Builds eigenvalue-corrected K-FAC at a fixed interval."""
    return [_kfac(EKFAC, training, settings)]


def _kfac(kind: type[KFAC], training: Training, settings: KFACSettings) -> KFAC:
    return kind(
        training.model,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        damping=Damping(settings.damping, settings.damping_mode),
        factor_interval=settings.interval,
        inverse_interval=settings.interval,
        norm_control=settings.norm_control,
        statistics=_statistics(training, settings),
    )
