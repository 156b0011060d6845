"""What a user sees of a run: on a terminal, in a log, in TensorBoard."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.reading import read_run
from thor_bench.tasks import ACCURACY
from thor_bench.training.observers import TensorBoardObserver, TerminalObserver
from thor_bench.training.signals import StopRequest
from thor_bench.training.timing import Stopwatch
from thor_bench.training.train import train

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from thor_bench.tasks import Task


def shown(tiny: Task, directory: Path, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=140)
    observer = TerminalObserver(console, title="[1/2] thor-seed0", metric=ACCURACY)
    rule = ["interval=1", "update_above=1e9"]  # the first refresh, then none
    config = plan_run(tiny, "thor", seed=0, changes=rule, options=RunOptions(epochs=2))
    train(config, directory, observers=[observer])
    return file.getvalue()


def test_a_log_has_a_line_per_evaluation_and_no_control_codes(tiny: Task, tmp_path: Path) -> None:
    lines = shown(tiny, tmp_path, terminal=False).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("[1/2] thor-seed0") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_terminal_shows_loss_accuracy_decisions_and_time_left(tiny: Task, tmp_path: Path) -> None:
    text = shown(tiny, tmp_path, terminal=True)
    assert all(part in text for part in ("loss", "accuracy", "keep", "left", "/8"))


def test_tensorboard_has_the_recorded_numbers(tiny: Task, tmp_path: Path) -> None:
    config = plan_run(tiny, "thor", seed=0, options=RunOptions(epochs=30))
    train(config, tmp_path, observers=[TensorBoardObserver(tmp_path, ACCURACY)])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    run = read_run(tmp_path)
    written = [(event.step, event.value) for event in events.Scalars("test/accuracy")]
    assert written == [(record.step, record.test_metric) for record in run.evaluations]
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/lr", "test/loss", "cost/epoch_seconds"} <= set(tags)
    assert any(tag.startswith("curvature/") for tag in tags)


def test_stopwatch_counts_running_and_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("thor_bench.training.timing.time.perf_counter", lambda: now)
    clock = Stopwatch(torch.device("cpu"), seconds=10.0)
    now = 6.0
    with clock.running():
        now = 8.0
        with clock.paused():
            now = 100.0
        assert clock.seconds == 12.0
        now = 101.0
    now = 200.0
    assert clock.seconds == 13.0


def test_stop_request_gives_the_handlers_back() -> None:
    import signal  # noqa: PLC0415

    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        asked = [stop.asked]
        signal.raise_signal(signal.SIGINT)
        assert [*asked, stop.asked] == [False, True]
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before
