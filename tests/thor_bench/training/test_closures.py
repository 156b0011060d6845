"""Optimizers whose steps take closures: what each is given, records, resume, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from thor_bench.compare import CompareOptions, plan_comparison, run_comparison
from thor_bench.errors import BenchError, RunDivergedError
from thor_bench.league.plan import League
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.tasks import WORKLOADS, Squares, Task, find_task
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.ranks import Ranks
from thor_bench.training.session import Session
from thor_bench.training.train import train
from torch_thor import GaussNewton

if TYPE_CHECKING:
    from pathlib import Path

    from thor_bench.records.config import RunConfig

CLOSURES = ("gauss-newton", "lbfgs")
INPUTS = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))


def residuals(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]) - batch[1]


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Task:
    """A fit by squares that takes milliseconds."""
    pairs = (INPUTS, torch.sin(INPUTS.sum(1, keepdim=True)))
    task = Task(
        name="fit",
        model=lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)),
        loss=Squares(residuals),
        train=pairs,
        test=pairs,
        epochs=2,
        batch_size=12,
        target=0.01,
    )
    monkeypatch.setitem(WORKLOADS, task.name, task)
    return task


def plan(task: Task, optimizer: str, *changes: str, **options: Any) -> RunConfig:
    planned = plan_run(task, optimizer, seed=0, changes=changes, options=RunOptions(**options))
    return replace(planned, record_every=1)


@pytest.mark.parametrize(
    "words", [("gauss-newton",), ("gauss-newton", "curvature=kronecker"), ("lbfgs",)]
)
def test_a_cut_run_goes_on_bit_for_bit(words: tuple[str, ...], fit: Task, tmp_path: Path) -> None:
    train(plan(fit, *words, epochs=2), tmp_path / "whole")
    session_of = tmp_path / "cut"
    config = plan(fit, *words, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, session_of, observers=[Cuts()])
    train(config, session_of, resume=True)
    whole, cut = read_run(tmp_path / "whole"), read_run(session_of)
    assert [one.loss for one in cut.steps] == [one.loss for one in whole.steps]
    assert [one.lr for one in whole.steps] == [None] * 8
    states = [
        torch.load(folder / CHECKPOINT_FILE, weights_only=True)["model"]
        for folder in (tmp_path / "whole", session_of)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


class Cuts:
    """An observer that ends the process, as a kill would, after the first epoch."""

    def observe(self, record: Any) -> None:
        if record.kind == "step" and record.step == 6:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.mark.parametrize("optimizer", CLOSURES)
def test_both_fit_far_below_the_first_loss(optimizer: str, fit: Task, tmp_path: Path) -> None:
    result = train(plan(fit, optimizer, epochs=6, batch_size=48), tmp_path)
    assert result.final_metric < 0.02 * read_run(tmp_path).steps[0].loss


def test_lbfgs_steps_on_the_first_batch_and_gauss_newton_on_each(fit: Task) -> None:
    seen: list[Tensor] = []

    def noted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(batch[0])
        return residuals(model, batch)

    task = replace(fit, loss=Squares(noted))
    WORKLOADS[task.name] = task
    for optimizer, batches in (("lbfgs", 1), ("gauss-newton", 4)):
        session = Session(plan(task, optimizer), task, DataSource())
        seen.clear()
        for batch in session.data.batches(0):
            session.step(batch, lambda _loss: None)
        assert len({tuple(one[:, 0].tolist()) for one in seen}) == batches


def test_gauss_newton_takes_its_settings(fit: Task) -> None:
    config = plan(fit, "gauss-newton", "damping=0.5", "adaptive=no")
    session = Session(config, fit, DataSource())
    (optimizer,) = session.rule.optimizers
    assert isinstance(optimizer, GaussNewton)
    lambdas = []
    for batch in session.data.batches(0):
        session.step(batch, lambda _loss: None)
        lambdas.append(optimizer.damping)
    assert lambdas == [lambdas[0]] * 4
    with pytest.raises(BenchError, match=r"--set lr' is unknown|--set 'lr' is unknown"):
        plan(fit, "gauss-newton", "lr=1")


def test_a_loss_alone_has_no_residuals(tiny: Task) -> None:
    with pytest.raises(BenchError, match="takes residuals, and tiny has a loss alone") as told:
        plan_comparison(tiny, ["sgd", "gauss-newton"], CompareOptions())
    assert "loss=Squares(residuals), as " in str(told.value)
    assert "poisson-2d" in str(told.value)
    plan(find_task("image-fit"), "gauss-newton")


def test_what_is_not_finite_is_a_miss_and_the_others_go_on(fit: Task, tmp_path: Path) -> None:
    task = replace(fit, loss=Squares(lambda m, b: residuals(m, b) / 0.0))
    WORKLOADS[task.name] = task
    for optimizer in CLOSURES:
        with pytest.raises(RunDivergedError, match="look at the loss"):
            train(plan(task, optimizer), tmp_path / optimizer)
    options = CompareOptions(seeds=1, target=0.01, run=RunOptions(epochs=1))
    comparison = plan_comparison(task, CLOSURES, options)
    runs = run_comparison(comparison, tmp_path / "all", source=DataSource(), observe=lambda *_: [])
    assert [one.config.optimizer for one in runs] == list(CLOSURES)


def test_rows_that_mix_are_told_in_a_line(fit: Task, tmp_path: Path) -> None:
    mixed = Squares(lambda model, batch: residuals(model, batch).cumsum(0))
    task = replace(fit, loss=mixed)
    WORKLOADS[task.name] = task
    with pytest.raises(BenchError, match="gauss-newton on fit: The rows of the residuals"):
        train(plan(task, "gauss-newton"), tmp_path)


class Two(Ranks):
    """A process that believes it has company."""

    size = 2


@pytest.mark.parametrize("optimizer", CLOSURES)
def test_one_process_alone_searches(optimizer: str, fit: Task) -> None:
    with pytest.raises(BenchError, match="in one process; leave torchrun out"):
        Session(plan(fit, optimizer), fit, DataSource(), Two())


def test_no_rate_no_search_of_rates(fit: Task) -> None:
    for optimizer in CLOSURES:
        with pytest.raises(BenchError, match="no rate to search; take thor compare"):
            League(tasks=(fit.name,), optimizers=("sgd", optimizer))


def test_poissons_equation_is_solved_in_a_second_of_steps(tmp_path: Path) -> None:
    task = find_task("poisson-2d")
    config = plan(task, "gauss-newton", epochs=0.8, batch_size=128)
    result = train(config, tmp_path)
    assert result.step == 40
    assert result.final_metric < 1e-2
    assert math.isfinite(read_run(tmp_path).steps[-1].loss)
