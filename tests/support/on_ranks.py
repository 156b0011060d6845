"""What torchrun starts for test_ranks.py: ``on_ranks.py whole|broken FOLDER``."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from thor_bench.cli.commands import app
from thor_bench.errors import RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.tasks import ACCURACY, WORKLOADS, Task, find_task
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.models import small_resnet
from thor_bench.tasks.pairs import CLASSES
from thor_bench.training import precision
from thor_bench.training.ranks import Ranks, open_ranks
from thor_bench.training.train import train

if TYPE_CHECKING:
    from thor_bench.records.config import RunConfig
    from thor_bench.records.records import Record

OWN = Path(__file__).parents[2] / "examples" / "tasks" / "tensors.py"
PUBLISHED = (("cifar10-resnet18", "paper"), ("imagenet-resnet50", "paper-256"))
STEPS_BEFORE_THE_SIGNAL = 6


def small_model() -> nn.Module:
    """A network in the place of the large one: the pipeline is what is tested."""
    return small_resnet(channels_in=3, widths=(16, 32), blocks=1, classes=10)


def without_batch_norm() -> nn.Module:
    """The same, but each sample is normalized by itself, wherever the others are."""
    model = small_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.GroupNorm(4, module.num_features))
    return model


def published(name: str, dtype: torch.dtype | None) -> Task:
    """A published pipeline with a small network."""
    build = small_model if dtype else without_batch_norm
    return replace(find_task(name), autocast=dtype, model=build)


def train_published(data: Path, out: Path, ranks: Ranks) -> None:
    """Trains each published set-up on a tiny data set, under bf16 and in float32."""
    # Emulated where it has to be.
    setattr(precision, "multiplies_bfloat16", lambda _device: True)  # noqa: B010 (no public name)
    for name, preset in PUBLISHED:
        for dtype in (torch.bfloat16, None):
            WORKLOADS[name] = published(name, dtype)
            options = RunOptions(epochs=1, batch_size=4, preset=preset)
            # At the published rates random labels blow up, and rounding with them.
            calm = ["lr=1e-3", "damping=1"]
            config = plan_run(WORKLOADS[name], "paper-thor", seed=0, changes=calm, options=options)
            config = replace(config, record_every=1)
            source = DataSource(data / name, workers=0)
            folder = out / f"{name}-{'bf16' if dtype else 'fp32'}"
            train(config, folder, source=source, ranks=ranks)


def train_own(out: Path, ranks: Ranks) -> None:
    """Trains a task file."""
    config = plan_run(find_task(str(OWN)), "thor", seed=0, options=RunOptions(epochs=0.25))
    train(replace(config, record_every=1), out / "own", ranks=ranks)


def _load(_source: DataSource) -> TrainTest[TensorSplit]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 2
    inputs = torch.randn(96, 4, generator=generator) + 3.0 * targets[:, None]
    return TrainTest(TensorSplit(inputs[:64], targets[:64]), TensorSplit(inputs[64:], targets[64:]))


def _clouds() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 2))


WORKLOADS["clouds"] = Task(
    name="clouds",
    description="two clouds; masks of dropout and averages of BatchNorm differ between ranks",
    input_summary="64 + 32 points",
    load=_load,
    model=_clouds,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=90.0,
    epochs=3,
    batch_size=16,
)


def plan_clouds() -> RunConfig:
    config = plan_run(find_task("clouds"), "thor", seed=0, changes=["interval=2"])
    return replace(config, record_every=1)


class SignalAt:
    """Sends a signal to its own process after a step, as an observer of the first rank."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def observe(self, record: Record) -> None:
        if record.kind == "step" and record.step == STEPS_BEFORE_THE_SIGNAL:
            signal.raise_signal(self._number)

    def close(self) -> None:
        pass


def train_stopped(out: Path, ranks: Ranks) -> None:
    """Trains a whole run, and the same with a stop on the way that only one rank hears of."""
    config = plan_clouds()
    train(config, out / "whole", ranks=ranks)
    try:
        train(config, out / "cut", observers=[SignalAt(signal.SIGTERM)], ranks=ranks)
    except RunInterruptedError as stopped:
        (out / f"told-{ranks.rank}").write_text(str(stopped))
    train(config, out / "cut", resume=True, ranks=ranks)


def main(job: str, folder: Path) -> None:
    """Does a job on this rank."""
    if job == "broken":
        name, preset = PUBLISHED[1]
        WORKLOADS[name] = published(name, None)
        words = ["train", name, "--optimizer", "paper-thor", "--preset", preset, "--epochs", "1"]
        words += ["--batch-size", "4", "--workers", "0", "--data-dir", str(folder / "broken")]
        app([*words, "--out", str(folder / "out")], prog_name="thor")
    with open_ranks("cpu") as ranks:
        observers = []
        if not ranks.restarted:
            train_published(folder / "data", folder / "two", ranks)
            train_own(folder / "two", ranks)
            train_stopped(folder, ranks)
            observers.append(SignalAt(signal.SIGKILL))
        train(plan_clouds(), folder / "killed", observers=observers, ranks=ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
