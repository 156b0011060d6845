"""A batch of test data is judged before training, and leaves nothing behind."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.tasks import WORKLOADS, Metric, Task
from thor_bench.training import train as training
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.rehearsal import rehearse
from thor_bench.training.session import Session
from thor_bench.training.train import train

if TYPE_CHECKING:
    from pathlib import Path


class Counts(nn.Module):
    """Buffers change in every call, in evaluation too: one in place, one by another tensor."""

    seen: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += 1
        self.last = inputs.detach().mean(1)
        random.random()  # noqa: S311
        np.random.rand()  # noqa: NPY002 - as users' code does
        return inputs + 0.01 * self.seen + 0.01 * torch.randn_like(inputs)


class Frozen(nn.BatchNorm1d):
    """Made in evaluation, where it is to stay."""


def model() -> nn.Module:
    parts = [nn.Linear(4, 8), nn.BatchNorm1d(8), Counts(), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*parts, Frozen(8).eval(), nn.Linear(8, 2))


@pytest.fixture(params=[True, False], ids=["metric", "loss"])
def task(request: pytest.FixtureRequest, tiny: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task whose model has everything that a forward pass may change."""
    loss = Metric(name="loss", higher_is_better=False)
    own = replace(tiny, model=model, metric=tiny.metric if request.param else loss)
    monkeypatch.setitem(WORKLOADS, own.name, own)
    return own


def session(task: Task, optimizer: str = "thor") -> Session:
    return Session(plan_run(task, optimizer, seed=0), task, DataSource())


def test_nothing_is_left(task: Task) -> None:
    one = session(task)
    buffers = dict(one.model.named_buffers())
    before: dict[str, Any] = {name: buffer.clone() for name, buffer in buffers.items()}
    modes = [module.training for module in one.model.modules()]
    draws = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
    rehearse(one)
    for name, buffer in one.model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, before[name])
    assert [module.training for module in one.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert random.getstate() == draws[1]
    assert str(np.random.get_state()) == str(draws[2])  # noqa: NPY002


@pytest.mark.parametrize("optimizer", ["thor", "muon"])
def test_a_run_is_the_same_to_the_bit(
    optimizer: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan_run(task, optimizer, seed=0, options=RunOptions(epochs=2))
    rehearsed: list[Session] = []

    def counted(one: Session) -> None:
        rehearsed.append(one)
        rehearse(one)

    for name, instead in {"with": counted, "without": lambda _: None}.items():
        monkeypatch.setattr(training, "rehearse", instead)
        train(config, tmp_path / name)
    assert len(rehearsed) == 1
    weights = [
        torch.load(tmp_path / name / CHECKPOINT_FILE, weights_only=True)["model"]
        for name in ("with", "without")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    runs = [read_run(tmp_path / name) for name in ("with", "without")]
    told = [[(e.test_loss, e.test_metric) for e in one.evaluations] for one in runs]
    assert told[0] == told[1]


def test_modes_are_the_model_s_own(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm that was made in evaluation stays there; a model that is all in it trains."""
    one = session(task)
    one.evaluate()
    assert one.model.training
    assert {type(part) for part in one.model.modules() if not part.training} == {Frozen}
    whole = replace(task, model=lambda: nn.Sequential(nn.Linear(4, 2), nn.Dropout()).eval())
    monkeypatch.setitem(WORKLOADS, task.name, whole)
    assert all(part.training for part in session(whole, "sgd").model.modules())
