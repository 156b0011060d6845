"""Tasks: the built-in ones, called workloads, and those of users' files."""

from pathlib import Path

from thor_bench.errors import unknown_choice
from thor_bench.records.records import RunStarted
from thor_bench.records.task_card import TaskCard
from thor_bench.tasks.autoencoder import FASHION_AUTOENCODER
from thor_bench.tasks.cifar10 import CIFAR10_RESNET18
from thor_bench.tasks.collocation import HEAT_ROD, POISSON_CUBE, POISSON_SQUARE
from thor_bench.tasks.depthwise import DEPTHWISE
from thor_bench.tasks.digits import DIGITS
from thor_bench.tasks.fashion import FASHION
from thor_bench.tasks.image_fit import IMAGE_FIT
from thor_bench.tasks.imagenet import IMAGENET_RESNET50
from thor_bench.tasks.lstm import LSTM_TEXT
from thor_bench.tasks.metamath import METAMATH
from thor_bench.tasks.pairs import ACCURACY
from thor_bench.tasks.pinn import PINN
from thor_bench.tasks.squares import Squares
from thor_bench.tasks.tabular import TABULAR
from thor_bench.tasks.task import Likelihood, Metric, Task
from thor_bench.tasks.taskfile import is_file, load_task
from thor_bench.tasks.text import TEXT_GPT
from thor_bench.tasks.unet import UNET
from thor_bench.tasks.vae import VAE_MLP
from thor_bench.tasks.vit import VIT

__all__ = [
    "ACCURACY",
    "WORKLOADS",
    "Likelihood",
    "Metric",
    "Squares",
    "Task",
    "card_of",
    "find_task",
    "is_file",
]

WORKLOADS: dict[str, Task] = {
    workload.name: workload
    for workload in (
        DIGITS,
        TABULAR,
        FASHION,
        FASHION_AUTOENCODER,
        TEXT_GPT,
        METAMATH,
        LSTM_TEXT,
        VIT,
        DEPTHWISE,
        UNET,
        VAE_MLP,
        IMAGE_FIT,
        PINN,
        POISSON_SQUARE,
        POISSON_CUBE,
        HEAT_ROD,
        CIFAR10_RESNET18,
        IMAGENET_RESNET50,
    )
}


def find_task(name: str, *, argument: str = "WORKLOAD") -> Task:
    """Returns a task by what a user gave for an argument: a workload's name, or a file.

    A file is read once: it is, until the process ends, as it was then.

    Args:
        name: ``digits``, ``my_task.py``, or ``my_task.py:name`` for another function than ``task``.
        argument: How the user spells the argument.

    Raises:
        BenchError: There is none of that name, or the file makes no task.
    """
    if is_file(name):
        return load_task(name)
    if name not in WORKLOADS:
        beside = [f"{name}.py"] if Path(f"{name}.py").is_file() else []
        raise unknown_choice(argument, name, [*WORKLOADS, *beside])
    return WORKLOADS[name]


def card_of(started: RunStarted) -> TaskCard:
    """Returns what the records of a run say of its task; older records name it alone."""
    return started.task or find_task(started.config.workload).card
