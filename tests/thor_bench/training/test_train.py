"""A run: its records, its clock, and that a stopped run goes on bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import pytest
import torch

from dying import dies_at
from thor_bench.compare import CompareOptions, plan_comparison, run_comparison
from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.records.records import RECORDS_FILE, Record, RunFailed, RunFinished
from thor_bench.tasks import find_task
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.rundir import is_pending
from thor_bench.training.train import train
from torch_thor import CurvatureError, NonFiniteGradientError

if TYPE_CHECKING:
    from pathlib import Path

    from thor_bench.records.config import RunConfig
    from thor_bench.records.reading import Run
    from thor_bench.tasks import Task
    from thor_bench.training.observers import Observer

OPTIMIZERS = ("thor", "kfac", "ekfac", "sgd", "adamw", "muon")


def plan(workload: Task, optimizer: str = "sgd", **options: Any) -> RunConfig:
    return plan_run(workload, optimizer, seed=0, options=RunOptions(**options))


def trajectory(run: Run) -> list[object]:
    """Everything that a run recorded, without what differs by the machine's mood."""
    same_clock = [replace(record, seconds=0.0) for record in (*run.steps, *run.evaluations)]
    losses = [(record.epoch, record.step, record.train_loss) for record in run.epochs]
    return [*same_clock, *losses, *run.decisions, *run.statistics]


class SignalAt:
    """An observer that sends a signal to its own process after some records."""

    def __init__(self, count: int, number: signal.Signals) -> None:
        self._left = count
        self._number = number

    def observe(self, _record: Record) -> None:
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(self._number)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_learns_the_tiny_workload(
    optimizer: str, tiny: Task, tmp_path: Path
) -> None:
    # Rates that are past the target early, from any start.
    changes = {"kfac": ["lr=0.01"], "ekfac": ["lr=0.01"], "adamw": ["lr=0.03"]}.get(optimizer, [])
    options = RunOptions(epochs=10)
    config = plan_run(tiny, optimizer, seed=0, changes=changes, options=options)
    result = train(config, tmp_path)
    assert result.best_metric > 90


def test_records_tell_the_whole_run(tiny: Task, tmp_path: Path) -> None:
    result = train(plan(tiny, epochs=3, evals_per_epoch=2), tmp_path)
    run = read_run(tmp_path)
    assert run.started.steps_per_epoch == 4
    assert [record.step for record in run.evaluations] == [2, 4, 6, 8, 10, 12]
    assert [record.epoch for record in run.epochs] == [1, 2, 3]
    assert run.end == RunFinished(
        step=12,
        seconds=result.seconds,
        best_metric=result.best_metric,
        final_metric=result.final_metric,
    )
    seconds = [record.seconds for record in run.evaluations]
    assert seconds == sorted(seconds)
    assert sum(record.epoch_seconds for record in run.epochs) == pytest.approx(result.seconds)
    assert all(record.peak_memory_mb > 10 for record in run.epochs)


def test_a_horizon_may_end_inside_an_epoch(tiny: Task, tmp_path: Path) -> None:
    train(plan(tiny, epochs=2.25, evals_per_epoch=2), tmp_path)
    run = read_run(tmp_path)
    assert run.started.total_steps == 9
    assert [record.step for record in run.evaluations] == [2, 4, 6, 8, 9]
    assert [record.step for record in run.epochs] == [4, 8, 9]
    assert [record.epoch for record in run.whole_epochs] == [1, 2]
    with pytest.raises(BenchError, match="has reached its horizon"):
        train(run.config, tmp_path, resume=True)
    odd = plan(tiny, epochs=1.23456789)  # a command that rounds it would ask for another run
    assert "--epochs 1.23456789 " in odd.command(tmp_path)


def test_a_run_cut_in_its_last_part_of_an_epoch_resumes(tiny: Task, tmp_path: Path) -> None:
    config = replace(plan(tiny, "thor", epochs=1.75), record_every=1)
    train(config, tmp_path / "whole")
    with pytest.raises(RunInterruptedError, match=r"at epoch 1\.[25]"):
        train(config, tmp_path / "cut", observers=[SignalAt(8, signal.SIGTERM)])
    cut = read_run(tmp_path / "cut")
    assert 4 < cut.steps[-1].step < 7
    train(config, tmp_path / "cut", resume=True)
    assert trajectory(read_run(tmp_path / "cut")) == trajectory(read_run(tmp_path / "whole"))


def test_evaluation_is_outside_the_clock(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_model: object, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.5)
        return torch.zeros(len(batch[1]))

    workload = replace(tiny, metric=replace(tiny.metric, score=slow))
    monkeypatch.setattr("thor_bench.training.train.find_task", lambda _: workload)
    begun = time.perf_counter()
    result = train(plan(tiny, epochs=2), tmp_path)
    assert time.perf_counter() - begun > 1.0
    assert result.seconds < time.perf_counter() - begun - 1.0


def test_same_seed_same_run_other_seed_other_run(tiny: Task, tmp_path: Path) -> None:
    config = plan(tiny)
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(replace(config, seed=seed), tmp_path / name)
        runs.append(trajectory(read_run(tmp_path / name)))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "optimizer", ["thor", "ekfac", "muon", "muon-polar", "normuon", "adamuon", "kron", "splus"]
)
def test_a_signal_saves_and_resume_is_bit_exact(
    optimizer: str, number: signal.Signals, tiny: Task, tmp_path: Path
) -> None:
    if told := find_optimizer(optimizer).lacks():
        pytest.skip(told)
    config = replace(plan(tiny, optimizer, epochs=4), record_every=1)
    train(config, tmp_path / "whole")
    again = rf"go on with: thor train tiny .* --data-dir {tmp_path} --workers 1 --resume"
    source = DataSource(tmp_path, workers=1)
    with pytest.raises(RunInterruptedError, match=again):
        train(config, tmp_path / "cut", source=source, observers=[SignalAt(9, number)])
    cut = read_run(tmp_path / "cut")
    assert 0 < cut.steps[-1].step < 16
    train(config, tmp_path / "cut", resume=True)
    assert trajectory(read_run(tmp_path / "cut")) == trajectory(read_run(tmp_path / "whole"))
    states = [
        torch.load(tmp_path / name / CHECKPOINT_FILE, weights_only=True)["model"]
        for name in ("cut", "whole")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_a_killed_process_resumes_bit_exact(tmp_path: Path) -> None:
    out, epochs = tmp_path / "killed", 8
    # Epoch 2 is trained and written, but its checkpoint does not stand yet.
    script = dies_at("os.rename", "checkpoint.tmp", 2) + "from thor_bench import cli; cli.main()"
    words = ["train", "digits", "--optimizer", "thor", "--epochs", str(epochs), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.run(  # noqa: S603
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert read_run(out).end is None
    config = plan(find_task("digits"), "thor", epochs=epochs)
    train(config, out, resume=True)
    train(config, tmp_path / "whole")
    assert trajectory(read_run(out)) == trajectory(read_run(tmp_path / "whole"))


def test_a_stopped_comparison_says_how_to_go_on_and_does(tiny: Task, tmp_path: Path) -> None:
    options = CompareOptions(seeds=2)
    comparison = plan_comparison(tiny, ["sgd", "adamw"], options)

    def stop_in_the_second(_config: RunConfig, _folder: Path, number: int) -> list[Observer]:
        return [SignalAt(3, signal.SIGINT)] if number == 2 else []

    told = f"run 2 of 4; go on with: {re.escape(comparison.command)} --out {tmp_path}$"
    with pytest.raises(RunInterruptedError, match=told):
        run_comparison(comparison, tmp_path, source=DataSource(), observe=stop_in_the_second)
    runs = run_comparison(comparison, tmp_path, source=DataSource(), observe=lambda *_: ())
    assert all(isinstance(run.end, RunFinished) for run in runs)
    names = [run.config.name for run in runs]
    assert names == ["sgd-seed0", "adamw-seed0", "sgd-seed1", "adamw-seed1"]


def test_resume_drops_a_half_written_line(tiny: Task, tmp_path: Path) -> None:
    config = plan(tiny, epochs=4)
    train(config, tmp_path / "whole")
    with pytest.raises(RunInterruptedError):
        train(config, tmp_path / "cut", observers=[SignalAt(4, signal.SIGINT)])
    with (tmp_path / "cut" / RECORDS_FILE).open("a") as file:
        file.write('{"kind": "step", "st')
    train(config, tmp_path / "cut", resume=True)
    assert trajectory(read_run(tmp_path / "cut")) == trajectory(read_run(tmp_path / "whole"))


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(tiny: Task, tmp_path: Path) -> None:
    config = plan(tiny)
    train(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    first = (tmp_path / "whole" / RECORDS_FILE).read_text().splitlines()[0]
    (cut / RECORDS_FILE).write_text(first + "\n")
    train(config, cut, resume=True)
    assert trajectory(read_run(cut)) == trajectory(read_run(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("target", "limit", "why"),
    [(0.0, 60.0, "at the target"), (101.0, 0.0, "slower than an earlier trial")],
)
def test_a_run_ends_at_the_evaluation_that_settles_it(
    target: float, limit: float, why: str, tiny: Task, tmp_path: Path
) -> None:
    config = plan(tiny, evals_per_epoch=2)
    train(config, tmp_path / "whole")
    stop = EarlyStop(tiny.metric, target, limit)
    finished = train(config, tmp_path / "cut", early_stop=stop)
    run = read_run(tmp_path / "cut")
    assert run.end == finished
    assert (finished.ended, finished.step, run.epochs) == (why, 2, ())
    assert finished.seconds == run.evaluations[0].seconds
    whole = read_run(tmp_path / "whole").evaluations[0]
    assert replace(run.evaluations[0], seconds=0.0) == replace(whole, seconds=0.0)
    assert not is_pending(config, tmp_path / "cut")
    with pytest.raises(BenchError, match=f"was ended early \\({why}\\)"):
        train(config, tmp_path / "cut", resume=True)


def test_nan_loss_fails_with_the_last_good_checkpoint_kept(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def loss(model: torch.nn.Module, batch: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        value = tiny.loss(model, batch)
        return value if calls < 7 else value * float("nan")

    workload = replace(tiny, loss=loss)
    monkeypatch.setattr("thor_bench.training.train.find_task", lambda _: workload)
    with pytest.raises(RunDivergedError, match=r"sgd on tiny: loss became nan at step 7.*epoch 1"):
        train(plan(tiny), tmp_path)
    end = read_run(tmp_path).end
    assert isinstance(end, RunFailed)
    assert (end.step, end.reason) == (6, "loss became nan at step 7")
    assert 0 <= end.seconds < 60
    saved = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    assert saved["progress"]["step"] == 4
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("kind", [CurvatureError, NonFiniteGradientError])
def test_an_optimizer_that_gives_up_fails_the_run(
    kind: type[Exception], tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(_self: object) -> None:
        raise kind("layer 0 could not be inverted")

    monkeypatch.setattr("torch_thor.THOR.step", give_up)
    with pytest.raises(RunDivergedError, match="thor on tiny: layer 0 could not be inverted"):
        train(plan(tiny, "thor"), tmp_path)
    assert isinstance(read_run(tmp_path).end, RunFailed)


def test_a_full_disk_leaves_the_former_checkpoint(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan(tiny, epochs=4)
    train(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(RunInterruptedError):
        train(config, cut, observers=[SignalAt(4, signal.SIGINT)])
    before = (cut / CHECKPOINT_FILE).read_bytes()

    def full(_payload: object, file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("thor_bench.training.checkpoint.torch.save", full)
        with pytest.raises(BenchError, match=r"cannot be written.*No space left.*--resume"):
            train(config, cut, resume=True)
    assert (cut / CHECKPOINT_FILE).read_bytes() == before
    train(config, cut, resume=True)
    assert trajectory(read_run(cut)) == trajectory(read_run(tmp_path / "whole"))
