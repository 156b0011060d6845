"""Optimizers that the step benchmarks compare, each at its usual settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from models import Task
from torch_thor import EKFAC, KFAC, THOR, GrowingInterval
from torch_thor.bench.muon import FlattenedMuon

Build = Callable[[nn.Module, Task, int], list[Optimizer]]

# Small, so that random targets don't blow a model up over a long measurement.
_LR = 1e-4


def _sgd(model: nn.Module, _task: Task, _interval: int) -> list[Optimizer]:
    return [
        torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    ]


def _sgd_fused(model: nn.Module, _task: Task, _interval: int) -> list[Optimizer]:
    return [
        torch.optim.SGD(
            model.parameters(), lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    ]


def _adamw(model: nn.Module, _task: Task, _interval: int) -> list[Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=_LR)]


def _muon(model: nn.Module, _task: Task, _interval: int) -> list[Optimizer]:
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embedded]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    sgd = torch.optim.SGD(rest, lr=_LR, momentum=0.9, nesterov=True)
    return [FlattenedMuon(matrices, lr=_LR, momentum=0.9, weight_decay=0.05), sgd]


def _thor(model: nn.Module, task: Task, interval: int) -> list[Optimizer]:
    return [THOR(model, lr=_LR, interval=GrowingInterval(interval, 1.0), exclude=task.exclude)]


def _kfac(model: nn.Module, task: Task, interval: int) -> list[Optimizer]:
    return [
        KFAC(
            model, lr=_LR, factor_interval=interval, inverse_interval=interval, exclude=task.exclude
        )
    ]


def _ekfac(model: nn.Module, task: Task, interval: int) -> list[Optimizer]:
    return [
        EKFAC(
            model, lr=_LR, factor_interval=interval, inverse_interval=interval, exclude=task.exclude
        )
    ]


OPTIMIZERS: dict[str, Build] = {
    "sgd": _sgd,
    "sgd-fused": _sgd_fused,
    "adamw": _adamw,
    "muon": _muon,
    "thor": _thor,
    "kfac": _kfac,
    "ekfac": _ekfac,
}
