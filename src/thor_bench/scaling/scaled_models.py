"""The models whose scaling is predicted, on random data of the real shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from thor_bench.errors import unknown_choice
from thor_bench.tasks import find_task, imagenet
from thor_bench.tasks.gpt import GPT
from thor_bench.tasks.pairs import Compare
from torch_thor import KFAC, THOR, Distributed, Intervals, Refresh, Statistics

Batch = tuple[Tensor, Tensor]

RULES = ("sgd", "kfac", "thor")

_LR = 1e-4  # random data teach nothing; the weights must only stay finite
_SYMBOLS, _CONTEXT = 50_257, 1024


@dataclass(frozen=True, kw_only=True)
class ScaledModel:
    """A model with batches of random data."""

    name: str  # on the command line
    build_model: Callable[[], nn.Module]
    draw: Callable[[int], Batch]  # samples -> batch
    loss: Compare = functional.cross_entropy
    batch: int  # samples per step and rank
    split: int  # of THOR; K-FAC takes whole factors
    loss_reduction: Literal["mean", "positions_mean"] = "mean"
    exclude: tuple[str, ...] = ()  # modules that train by the base rule
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format


def build_optimizer(
    name: str, model: nn.Module, task: ScaledModel, intervals: Intervals
) -> Optimizer:
    """Builds one of ``RULES``: K-FAC with whole factors and all rows, THOR with SGD's lengths.

    Layers refresh together, so that a step either refreshes all of them or none.
    """
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True)
    everywhere = Distributed(inversion="replicate")  # no owners: each rank inverts all blocks
    shared: dict[str, Any] = {"lr": _LR, "exclude": task.exclude, "distributed": everywhere}
    if name == "kfac":
        return KFAC(
            model,
            factor_interval=intervals.factors,
            inverse_interval=intervals.inverses,
            statistics=Statistics(rows=None, loss_reduction=task.loss_reduction),
            refresh=Refresh(stagger=False),
            **shared,
        )
    return THOR(
        model,
        norm_control="graft",
        split=task.split,
        interval=intervals,
        statistics=Statistics(loss_reduction=task.loss_reduction),
        refresh=Refresh(stagger=False, inverse_dtype="auto"),
        **shared,
    )


def find_model(name: str) -> ScaledModel:
    """Returns a task by its name."""
    if name not in MODELS:
        raise unknown_choice("WORKLOAD", name, MODELS)
    return MODELS[name]


def _classified(classes: int, *shape: int) -> Callable[[int], Batch]:
    """Draws inputs of a shape, each of one of some classes."""
    return lambda samples: (torch.randn(samples, *shape), torch.randint(classes, (samples,)))


def _text(samples: int) -> Batch:
    symbols = torch.randint(_SYMBOLS, (samples, _CONTEXT + 1))
    return symbols[:, :-1], symbols[:, 1:]


def _position_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _gpt2_small() -> nn.Module:
    """Returns GPT-2 small: 12 blocks of width 768, the head tied to the embedding."""
    model = GPT(symbols=_SYMBOLS, context=_CONTEXT, width=768, blocks=12, heads=12)
    model.head.weight = model.symbols.weight
    return model


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _images(
    name: str, loss: Compare, *, side: int, classes: int, batch: int, split: int
) -> ScaledModel:
    """Returns the task of a workload on images."""
    workload = find_task(name)
    return ScaledModel(
        name=name,
        build_model=workload.build,
        draw=_classified(classes, 3, side, side),
        loss=loss,
        batch=batch,
        split=split,
        autocast=workload.autocast,
        memory_format=workload.memory_format,
    )


CHECK = ScaledModel(name="mlp", build_model=_mlp, draw=_classified(10, 784), batch=128, split=128)

_GPT2_SMALL = ScaledModel(
    name="gpt2-small",
    build_model=_gpt2_small,
    draw=_text,
    loss=_position_loss,
    batch=1,
    split=128,
    loss_reduction="positions_mean",
    exclude=("head",),
    autocast=torch.bfloat16,
)

MODELS: dict[str, ScaledModel] = {
    task.name: task
    for task in (
        _images(
            "cifar10-resnet18", functional.cross_entropy, side=32, classes=10, batch=128, split=72
        ),
        # 32 images a device in each of the paper's rows: 256 on 8, 4096 on 128, 8192 on 256
        _images(
            "imagenet-resnet50", imagenet.CRITERION, side=224, classes=1000, batch=32, split=128
        ),
        _GPT2_SMALL,
    )
}
