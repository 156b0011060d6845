"""Peers that ask for more than parameters: schedule-free AdamW and SINGD."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.builders import Training
from thor_bench.optimizers.peers import pytorch_optimizer
from thor_bench.optimizers.settings import Count, Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeSettings(Settings):
    """pytorch_optimizer.ScheduleFreeAdamW: an average of the weights takes the place of decay.

    Attributes:
        beta1: Share of the average in the weights that gradients are taken at.
        beta2: Decay of the second moment.
    """

    lr: Positive = 5e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["constant", "triangle", "polynomial"] = "constant"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99


@dataclass(frozen=True, kw_only=True)
class SINGDSettings(Settings):
    """singd's SINGD on linear layers and convolutions, SGD with Nesterov momentum on the rest.

    Attributes:
        momentum: Momentum of both.
        damping: λ.
        interval: Steps between updates of the preconditioner.
        lr_cov: Learning rate of the preconditioner; its updates are normalized.
        alpha1: Momentum of the preconditioner.
        structure: Structure of both factors.
        rest_lr: Peak learning rate of all other parameters.
    """

    lr: Positive = 1e-3
    momentum: Fraction = 0.9
    damping: Positive = 1e-3
    interval: Count = 10
    lr_cov: Positive = 1e-2
    alpha1: Fraction = 0.5
    structure: Literal["dense", "diagonal", "block30diagonal", "hierarchical15_15"] = "dense"
    rest_lr: Positive = 0.1


def build_schedule_free(training: Training, settings: ScheduleFreeSettings) -> Sequence[Optimizer]:
    """Builds schedule-free AdamW over every parameter; the schedule gives its warm-up."""
    return [
        pytorch_optimizer().ScheduleFreeAdamW(
            # its step reads warmup_steps, which some versions leave out of the defaults
            [{"params": list(training.model.parameters()), "warmup_steps": 0}],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
    ]


def build_singd(training: Training, settings: SINGDSettings) -> Sequence[Optimizer]:
    """Builds SINGD over linear layers and convolutions, and SGD over the rest."""
    try:
        from singd.optim.optimizer import SINGD  # noqa: PLC0415 - other optimizers do without it
    except ImportError as error:
        message = "this optimizer comes from singd; pip install 'torch-thor[bench]'"
        raise BenchError(message) from error
    tracked, rest = singd_parameters(training.model)
    singd = SINGD(
        training.model,
        tracked,
        lr=settings.lr,
        momentum=settings.momentum,
        damping=settings.damping,
        alpha1=settings.alpha1,
        weight_decay=settings.weight_decay,
        T=settings.interval,
        loss_average="batch" if training.loss_reduction == "mean" else "batch+sequence",
        lr_cov=settings.lr_cov,
        structures=(settings.structure, settings.structure),
        normalize_lr_cov=True,
    )
    if not rest:
        return [singd]
    return [
        singd,
        torch.optim.SGD(
            rest, lr=settings.rest_lr, momentum=settings.momentum, nesterov=settings.momentum > 0
        ),
    ]


def singd_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns what SINGD trains, linear layers and convolutions, and all other parameters."""
    tracked = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for parameter in module.parameters()
    ]
    chosen = {id(parameter) for parameter in tracked}
    return tracked, [p for p in model.parameters() if id(p) not in chosen]
