"""A tiny workload, so that a whole run takes a fraction of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from thor_bench.tasks import ACCURACY, WORKLOADS, Task
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.pairs import CLASSES

if TYPE_CHECKING:
    from thor_bench.records.config import DataSource


def _load(_source: DataSource) -> TrainTest[TensorSplit]:
    """Two well separated clouds of points."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 2
    inputs = torch.randn(96, 4, generator=generator) + 3.0 * targets[:, None]
    return TrainTest(TensorSplit(inputs[:64], targets[:64]), TensorSplit(inputs[64:], targets[64:]))


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


TINY = Task(
    name="tiny",
    description="two clouds",
    input_summary="64 + 32 points",
    load=_load,
    model=_model,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=90.0,
    epochs=3,
    batch_size=16,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Task:
    """Registers the workload ``tiny``."""
    monkeypatch.setitem(WORKLOADS, TINY.name, TINY)
    return TINY
