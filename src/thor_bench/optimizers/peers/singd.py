"""SINGD of singd on linear layers and convolutions, SGD with Nesterov momentum on the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from thor_bench.optimizers.peer import Divided, Peer, Training, imported
from thor_bench.optimizers.settings import Count, Fraction, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class SINGDSettings(Settings):
    """SINGD's, and the rest's learning rate.

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


def divided(training: Training) -> Divided:
    """Returns what SINGD trains, linear layers and convolutions, and all other parameters."""
    modules = (m for m in training.model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return training.divide(parameter for module in modules for parameter in module.parameters())


def build(training: Training, settings: SINGDSettings) -> Sequence[Optimizer]:
    """Builds SINGD, and SGD where there is a rest."""
    tracked, rest = divided(training)
    singd = imported("singd.optim.optimizer.SINGD")(
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
    momentum = settings.momentum
    return [singd, torch.optim.SGD(rest, settings.rest_lr, momentum, nesterov=momentum > 0)]


PEERS = (Peer("singd", "SINGD (singd); SGD on the rest", SINGDSettings(), build),)
