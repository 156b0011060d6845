"""How each optimizer is built for a model from its settings."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Damping,
    GrowingInterval,
    Statistics,
    TraceRule,
    Update,
)
from torch_thor.bench.muon import FlattenedMuon
from torch_thor.bench.settings import (
    AdamWSettings,
    KFACSettings,
    MuonSettings,
    SGDSettings,
    THORSettings,
)


def _head(model: nn.Module) -> nn.Linear | None:
    """Returns the last linear layer of a model, which maps to its outputs."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _head_names(model: nn.Module) -> list[str]:
    head = _head(model)
    return [name for name, module in model.named_modules() if module is head]


def build_sgd(model: nn.Module, settings: SGDSettings) -> Sequence[Optimizer]:
    """Builds torch.optim.SGD over every parameter."""
    return [
        torch.optim.SGD(
            model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov and settings.momentum > 0,
        )
    ]


def build_adamw(model: nn.Module, settings: AdamWSettings) -> Sequence[Optimizer]:
    """Builds torch.optim.AdamW over every parameter."""
    return [
        torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    ]


def build_muon(model: nn.Module, settings: MuonSettings) -> Sequence[Optimizer]:
    """Builds Muon over hidden matrices and convolutions, SGD over norms, biases and the head."""
    head = _head(model)
    parameters = list(model.parameters())
    hidden = [p for p in parameters if p.dim() >= 2 and (head is None or p is not head.weight)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in parameters if id(p) not in chosen]
    muon = FlattenedMuon(
        hidden,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    sgd = torch.optim.SGD(
        rest,
        lr=settings.rest_lr,
        momentum=settings.momentum,
        weight_decay=settings.rest_weight_decay,
        nesterov=settings.momentum > 0,
    )
    return [muon, sgd]


def build_thor(model: nn.Module, settings: THORSettings) -> Sequence[Optimizer]:
    """Builds THOR with the settings' split, power, intervals and trace rule."""
    rule = None
    if settings.update_above is not None:
        rule = TraceRule(settings.update_above, settings.freeze_below, settings.damped_trace)
    return [
        THOR(
            model,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            damping=Damping(settings.damping, settings.damping_mode),
            split=settings.split,
            power=settings.power,
            interval=GrowingInterval(settings.interval, settings.growth),
            trace_rule=rule,
            norm_control=settings.norm_control,
            update=Update(
                nesterov=settings.nesterov,
                momentum_first=settings.momentum_first,
                decoupled_decay=settings.decoupled_decay,
            ),
            statistics=Statistics(decay=settings.decay, rows=settings.rows),
            base=Base(lr_scale=settings.base_lr_scale, weight_decay=settings.base_weight_decay),
            exclude=_head_names(model) if settings.exclude_head else (),
        )
    ]


def build_kfac(model: nn.Module, settings: KFACSettings) -> Sequence[Optimizer]:
    """Builds unsplit K-FAC at a fixed interval."""
    return [_kfac(KFAC, model, settings)]


def build_ekfac(model: nn.Module, settings: KFACSettings) -> Sequence[Optimizer]:
    """Builds eigenvalue-corrected K-FAC at a fixed interval."""
    return [_kfac(EKFAC, model, settings)]


def _kfac(kind: type[KFAC], model: nn.Module, settings: KFACSettings) -> KFAC:
    return kind(
        model,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        damping=Damping(settings.damping, settings.damping_mode),
        factor_interval=settings.interval,
        inverse_interval=settings.interval,
        norm_control=settings.norm_control,
        statistics=Statistics(decay=settings.decay, rows=settings.rows),
    )
