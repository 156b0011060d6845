"""Optimizers and tasks of benchmarks/gpu.py; nothing but torch, torchvision and torch_thor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torchvision.models import VisionTransformer, resnet50, vit_b_16

from models import GPT, Task, cifar_resnet18
from torch_thor import THOR, Refresh

Build = Callable[[nn.Module], list[Optimizer]]

# Small, so that random targets don't blow a model up over a long measurement.
_LR = 1e-4


def _sgd(model: nn.Module) -> list[Optimizer]:
    return [
        torch.optim.SGD(
            model.parameters(), lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True
        )
    ]


def _adamw(model: nn.Module) -> list[Optimizer]:
    fused = next(model.parameters()).is_cuda or None
    return [torch.optim.AdamW(model.parameters(), lr=_LR, fused=fused)]


def _muon(model: nn.Module) -> list[Optimizer]:
    from thor_bench.optimizers.peers.muon import FlattenedMuon  # noqa: PLC0415 - others need no bench

    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() in (2, 4) and id(p) not in embedded]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    sgd = torch.optim.SGD(rest, lr=_LR, momentum=0.9, nesterov=True, foreach=True)
    return [FlattenedMuon(matrices, lr=_LR, momentum=0.9, weight_decay=0.05), sgd]


def _thor(**options: Any) -> Build:
    return lambda model: [THOR(model, lr=_LR, **options)]


BUILDS: dict[str, Build] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "muon": _muon,
    "thor": _thor(),
    # The look at the gradients is the one wait of a plain step: without it the host runs ahead.
    "thor-unchecked": _thor(refresh=Refresh(inverse_dtype="auto", on_nonfinite="ignore")),
    "thor-interval-1": _thor(interval=1),
    "scale-free": lambda model: [THOR.scale_free(model, lr=_LR)],
    "thor-float32": _thor(refresh=Refresh(inverse_dtype=None)),
    "thor-bf16": _thor(refresh=Refresh(inverse_dtype=torch.bfloat16)),
}
# Their refreshes lie ever further apart, so a mean over many steps says what they cost.
GROWING = ("thor", "thor-unchecked", "scale-free", "thor-float32", "thor-bf16")

TASKS = {
    "resnet18-128": Task(cifar_resnet18, (128, 3, 32, 32), 10),
    "gpt2-small": Task(GPT, (8, 1024), 50257, tokens=True),
    "resnet18-1024": Task(cifar_resnet18, (1024, 3, 32, 32), 10),
    "resnet50-256": Task(resnet50, (256, 3, 224, 224), 1000),
    "vit-b16-128": Task(vit_b_16, (128, 3, 224, 224), 1000),
}


def _tiny_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 96, 3, stride=2, padding=1), nn.BatchNorm2d(96), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


def _tiny_vit() -> nn.Module:
    return VisionTransformer(32, 16, 2, 2, 64, 128, num_classes=10)


# The same names on shapes that a CPU passes in no time, to try every line of the benchmark.
TINY_TASKS = {
    "resnet18-128": Task(_tiny_resnet, (4, 3, 32, 32), 10),
    "gpt2-small": Task(lambda: GPT(2, 64, vocabulary=128), (2, 64), 128, tokens=True),
    "resnet18-1024": Task(_tiny_resnet, (8, 3, 32, 32), 10),
    "resnet50-256": Task(_tiny_resnet, (4, 3, 32, 32), 10),
    "vit-b16-128": Task(_tiny_vit, (4, 3, 32, 32), 10),
}
