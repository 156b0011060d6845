"""Optimizers and tasks of benchmarks/gpu.py; nothing but torch and torch_thor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models import Task
from networks import GPT, ViT, cifar_resnet18, resnet50
from torch_thor import THOR, Refresh

Build = Callable[[nn.Module], list[Optimizer]]

# Small, so that random targets don't blow a model up over a long measurement.
_LR = 1e-4
NEVER = 10**6  # an interval whose only refresh is the first step's


class Muon:
    """torch's Muon on weights that it takes as matrices; the two calls that a loop makes.

    Channels-last weights are viewed in the order of memory, which orthogonalization does not see.
    """

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self._weights = weights
        self._views = [nn.Parameter(_matrix(weight.detach(), weight)) for weight in weights]
        options: dict[str, Any] = {"lr": _LR, "momentum": 0.9, "weight_decay": 0.05}
        self._muon: Any = torch.optim.Muon(self._views, **options)
        self.state_dict = self._muon.state_dict

    def step(self) -> None:
        for weight, view in zip(self._weights, self._views, strict=True):
            view.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        self._muon.step()

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None


def _matrix(tensor: Tensor, weight: nn.Parameter) -> Tensor:
    last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (tensor.permute(0, 2, 3, 1) if last else tensor).flatten(1)


def _sgd(model: nn.Module) -> list[Optimizer]:
    return [_sgd_of(list(model.parameters()))]


def _sgd_of(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(
        parameters, lr=_LR, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=True
    )


def _adamw(model: nn.Module) -> list[Optimizer]:
    on_card = next(model.parameters()).is_cuda
    # capturable: its count of steps stays on the card, so that a graph can hold it.
    return [torch.optim.AdamW(model.parameters(), lr=_LR, fused=on_card, capturable=on_card)]


def _muon(model: nn.Module) -> list[Any]:
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    chosen = [p for p in model.parameters() if p.dim() in (2, 4) and id(p) not in embedded]
    known = {id(p) for p in chosen}
    return [Muon(chosen), _sgd_of([p for p in model.parameters() if id(p) not in known])]


def _thor(**options: Any) -> Build:
    return lambda model: [THOR(model, lr=_LR, norm_control="graft", **options)]


BUILDS: dict[str, Build] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "muon": _muon,
    "thor": _thor(),
    "thor-interval-5": _thor(interval=5),
    "thor-interval-1": _thor(interval=1),
    "thor-default": lambda model: [THOR(model)],
    # The look at the gradients left out.
    "thor-unchecked": _thor(refresh=Refresh(on_nonfinite="ignore")),
    "thor-plain": _thor(interval=NEVER),
}
# What a run measures unless others are asked for.
USUAL = ("sgd", "adamw", "muon", "thor", "thor-interval-5", "thor-interval-1", "thor-default")
COMPILED = ("sgd", "adamw", "thor-plain", "thor-interval-1")
GRAPHED = ("sgd", "adamw", "muon", "thor-plain", "thor-interval-1")
# Their steps are not all alike, so a mean over many says what they cost.
UNEVEN = ("thor", "thor-interval-5", "thor-default", "thor-unchecked")

TASKS = {
    "resnet18-128": Task(cifar_resnet18, (128, 3, 32, 32), 10),
    "resnet18-1024": Task(cifar_resnet18, (1024, 3, 32, 32), 10),
    "gpt2-small": Task(GPT, (8, 1024), 50257, tokens=True),
    "resnet50-256": Task(resnet50, (256, 3, 224, 224), 1000),
    "vit-b16-128": Task(ViT, (128, 3, 224, 224), 1000),
}


def _tiny_resnet18() -> nn.Module:
    return cifar_resnet18(width=8, depths=(1, 1))


def _tiny_resnet50() -> nn.Module:
    return resnet50(width=8, depths=(1, 1))


# The same names on shapes that a CPU passes in no time, to try every line of the benchmark.
TINY_TASKS = {
    "resnet18-128": Task(_tiny_resnet18, (4, 3, 32, 32), 10),
    "resnet18-1024": Task(_tiny_resnet18, (8, 3, 32, 32), 10),
    "gpt2-small": Task(lambda: GPT(2, 64, vocabulary=128), (2, 64), 128, tokens=True),
    "resnet50-256": Task(_tiny_resnet50, (4, 3, 32, 32), 1000),
    "vit-b16-128": Task(lambda: ViT(32, 16, 2, 64, 2), (4, 3, 32, 32), 1000),
}
