"""The models whose scaling is predicted, on random data of the real shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from thor_bench.errors import unknown_choice
from thor_bench.tasks import find_workload
from thor_bench.tasks.data import Batch
from thor_bench.tasks.gpt import GPT
from torch_thor import KFAC, THOR, Damping, Distributed, Intervals, Refresh, Statistics

CURVED = ("kfac", "thor")
RULES = ("sgd", *CURVED)

_LR = 1e-4  # random data teach nothing; the weights must only stay finite
_SYMBOLS, _CONTEXT = 50_257, 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model with batches of random data.

    Attributes:
        name: Name on the command line.
        build_model: Returns the model.
        draw: ``samples -> batch`` of random data.
        loss: ``(outputs, targets) -> scalar``.
        batch: Samples per step and rank.
        split: THOR's block size; K-FAC takes whole factors.
        loss_reduction: What ``loss`` is a mean over.
        exclude: Modules that train by the base rule.
        autocast: Type of the forward pass, or None for float32.
        memory_format: Layout of images and convolution weights.
    """

    name: str
    build_model: Callable[[], nn.Module]
    draw: Callable[[int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int
    split: int
    loss_reduction: Literal["mean", "positions_mean"] = "mean"
    exclude: Sequence[str] = ()
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format


def build_optimizer(
    name: str, model: nn.Module, task: Task, intervals: Intervals, distributed: Distributed
) -> Optimizer:
    """Builds SGD, K-FAC (whole factors, all rows) or THOR (split factors, sampled rows).

    Layers refresh together, so that a step either refreshes all of them or none.

    Args:
        name: One of ``RULES``.
        model: Model to train.
        task: What it is.
        intervals: Steps between updates of factors and of inverses.
        distributed: How ranks share the curvature.
    """
    refresh = Refresh(stagger=False, inverse_dtype="auto" if name == "thor" else None)
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=_LR, momentum=0.9, nesterov=True)
    if name == "kfac":
        return KFAC(
            model,
            lr=_LR,
            damping=Damping(0.03, "both"),
            factor_interval=intervals.factors,
            inverse_interval=intervals.inverses,
            statistics=Statistics(rows=None, loss_reduction=task.loss_reduction),
            refresh=refresh,
            exclude=task.exclude,
            distributed=distributed,
        )
    return THOR(
        model,
        lr=_LR,
        split=task.split,
        power=0.5,
        interval=intervals,
        norm_control="graft",
        statistics=Statistics(loss_reduction=task.loss_reduction),
        refresh=refresh,
        exclude=task.exclude,
        distributed=distributed,
    )


def _images(side: int, classes: int) -> Callable[[int], Batch]:
    def draw(samples: int) -> Batch:
        return torch.randn(samples, 3, side, side), torch.randint(classes, (samples,))

    return draw


def _text(samples: int) -> Batch:
    symbols = torch.randint(_SYMBOLS, (samples, _CONTEXT + 1))
    return symbols[:, :-1], symbols[:, 1:]


def _gpt2_small() -> nn.Module:
    """Returns GPT-2 small: 12 blocks of width 768, the head tied to the embedding."""
    model = GPT(symbols=_SYMBOLS, context=_CONTEXT, width=768, blocks=12, heads=12)
    model.head.weight = model.symbols.weight
    return model


def _position_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _vectors(samples: int) -> Batch:
    return torch.randn(samples, 784), torch.randint(10, (samples,))


def _of_workload(name: str, *, side: int, classes: int, batch: int, split: int) -> Task:
    workload = find_workload(name)
    return Task(
        name=name,
        build_model=workload.build_model,
        draw=_images(side, classes),
        loss=workload.loss,
        batch=batch,
        split=split,
        autocast=workload.autocast,
        memory_format=workload.memory_format,
    )


CHECK = Task(
    name="mlp",
    build_model=_mlp,
    draw=_vectors,
    loss=functional.cross_entropy,
    batch=128,
    split=128,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _of_workload("cifar10-resnet18", side=32, classes=10, batch=128, split=72),
        # 32 images a device in each of the paper's rows: 256 on 8, 4096 on 128, 8192 on 256
        _of_workload("imagenet-resnet50", side=224, classes=1000, batch=32, split=128),
        Task(
            name="gpt2-small",
            build_model=_gpt2_small,
            draw=_text,
            loss=_position_loss,
            batch=1,
            split=128,
            loss_reduction="positions_mean",
            exclude=("head",),
            autocast=torch.bfloat16,
        ),
    )
}


def find_task(name: str) -> Task:
    """Returns a task by its name.

    Raises:
        BenchError: There is none of that name.
    """
    if name not in TASKS:
        raise unknown_choice("WORKLOAD", name, TASKS)
    return TASKS[name]
