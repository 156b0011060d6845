"""Optimizers that the step benchmarks compare, each at its usual settings."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_optimizer
import torch
from singd.optim.optimizer import SINGD
from torch import nn
from torch.optim import Optimizer

from models import Task
from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.peers.muon import FlattenedMuon, lacks_muon
from thor_bench.optimizers.peers.singd import divided
from torch_thor import EKFAC, KFAC, THOR, GrowingInterval

Build = Callable[[nn.Module, Task, int | None], list[Optimizer]]

# Small, so that random targets don't blow a model up over a long measurement.
_LR = 1e-4


def _sgd(model: nn.Module, _task: Task, _interval: int | None) -> list[Optimizer]:
    return [
        torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    ]


def _sgd_fused(model: nn.Module, _task: Task, _interval: int | None) -> list[Optimizer]:
    return [
        torch.optim.SGD(
            model.parameters(), lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    ]


def _adamw(model: nn.Module, _task: Task, _interval: int | None) -> list[Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=_LR)]


def _muon(model: nn.Module, _task: Task, _interval: int | None) -> list[Optimizer]:
    if lacks := lacks_muon():
        raise SystemExit(f"muon {lacks}")
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embedded]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    sgd = torch.optim.SGD(rest, lr=_LR, momentum=0.9, nesterov=True)
    return [FlattenedMuon(matrices, lr=_LR, momentum=0.9, weight_decay=0.05), sgd]


def _thor(model: nn.Module, task: Task, interval: int | None) -> list[Optimizer]:
    own = GrowingInterval() if interval is None else GrowingInterval(interval, 1.0)
    return [THOR(model, lr=_LR, interval=own, exclude=task.exclude, norm_control="graft")]


def _default(model: nn.Module, _task: Task, interval: int | None) -> list[Optimizer]:
    return [THOR(model, lr=_LR, interval=interval)]


def _full(kind: type[KFAC | EKFAC]) -> Build:
    def build(model: nn.Module, task: Task, interval: int | None) -> list[Optimizer]:
        every = interval or 20
        options = {"factor_interval": every, "inverse_interval": every}
        return [kind(model, lr=_LR, exclude=task.exclude, **options)]

    return build


def _soap(model: nn.Module, _task: Task, interval: int | None) -> list[Optimizer]:
    kind = pytorch_optimizer.SOAP
    # Sides longer than 2048 stay unrotated, as in the bench.
    every, longest = interval or 20, 2048
    return [
        kind(
            model.parameters(),
            lr=_LR,
            precondition_frequency=every,
            max_precondition_dim=longest,
        )
    ]


def _shampoo(model: nn.Module, _task: Task, interval: int | None) -> list[Optimizer]:
    kind = pytorch_optimizer.ScalableShampoo
    every = interval or 20
    return [
        kind(
            model.parameters(),
            lr=_LR,
            block_size=128,
            preconditioning_compute_steps=every,
            statistics_compute_steps=every,
        )
    ]


def _singd(model: nn.Module, _task: Task, interval: int | None) -> list[Optimizer]:
    tracked, rest = divided(Training(model, steps_per_epoch=1))
    singd = SINGD(model, tracked, lr=_LR, momentum=0.9, T=interval or 20, normalize_lr_cov=True)
    return [singd, torch.optim.SGD(rest, lr=_LR, momentum=0.9, nesterov=True)]


def lacking(names: list[str]) -> dict[str, str]:
    """What the installed torch lacks for some of the optimizers, by their names."""
    what = lacks_muon()
    return {"muon": what} if what and "muon" in names else {}


OPTIMIZERS: dict[str, Build] = {
    "sgd": _sgd,
    "sgd-fused": _sgd_fused,
    "adamw": _adamw,
    "muon": _muon,
    "thor": _thor,
    "thor-default": _default,
    "kfac": _full(KFAC),
    "ekfac": _full(EKFAC),
    "soap": _soap,
    "shampoo": _shampoo,
    "singd": _singd,
}
