"""Promise: a disk that is full costs one line, never a run."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.records.reading import read_run
from thor_bench.tasks import ACCURACY, WORKLOADS, Task
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.pairs import CLASSES
from thor_bench.training.checkpoint import CHECKPOINT_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator


def _clouds() -> TrainTest[TensorSplit]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(96) % 2
    inputs = torch.randn(96, 4, generator=generator) + 3.0 * targets[:, None]
    return TrainTest(TensorSplit(inputs[:64], targets[:64]), TensorSplit(inputs[64:], targets[64:]))


@pytest.fixture(autouse=True)
def clouds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A workload whose whole run takes a moment."""
    workload = Task(
        name="clouds",
        description="two clouds",
        input_summary="64 + 32 points",
        load=lambda _source: _clouds(),
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        loss=CLASSES.loss,
        metric=ACCURACY,
        target=90.0,
        epochs=3,
        batch_size=16,
    )
    monkeypatch.setitem(WORKLOADS, "clouds", workload)
    yield
    torch.set_flush_denormal(False)


class FullAfter:
    """A disk below a folder that takes some writes, and then no more."""

    def __init__(self, folder: Path, writes: int) -> None:
        self._folder, self.left = str(folder), writes
        self._open = io.open

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = self._open(file, mode, *args, **kwargs)
        below = isinstance(file, str | Path) and str(file).startswith(self._folder)
        return Limited(opened, self) if below and set(mode) & set("wax+") else opened

    def takes(self) -> bool:
        self.left -= 1
        return self.left >= 0


class Limited:
    """A file on it."""

    def __init__(self, file: Any, disk: FullAfter) -> None:
        self._file, self._disk, self._refused = file, disk, False

    def write(self, data: Any) -> int:
        if not self._disk.takes():
            self._refused = True
            self._file.write(data[: len(data) // 2])
            self._refuse()
        written = self._file.write(data)
        return int(written)

    def _refuse(self) -> None:
        if self._refused:
            raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()
        self._refuse()  # what is left in the buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def full_after(folder: Path, writes: int) -> Iterator[FullAfter]:
    disk = FullAfter(folder, writes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", disk.open)
        patch.setattr(io, "open", disk.open)
        yield disk


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def assert_told(result: Any, folder: Path) -> None:
    """One line, a status, no half file, and no checkpoint or a whole one."""
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert "cannot be written" in result.stderr
    assert "No space left" in result.stderr
    assert list(folder.rglob("*.tmp")) == []
    for checkpoint in folder.rglob(CHECKPOINT_FILE):
        assert torch.load(checkpoint, weights_only=True)["version"] == 1


def trajectory(folder: Path) -> list[object]:
    found = read_run(folder)
    assert found.end is not None
    return [replace(record, seconds=0.0) for record in (*found.steps, *found.evaluations)]


def test_a_run_outlives_a_disk_that_is_full_at_any_write(tmp_path: Path) -> None:
    """Case 76: records, checkpoints and TensorBoard's events."""
    words = ("train", "clouds", "--optimizer", "sgd", "--evals-per-epoch", 2)
    with full_after(tmp_path, 10**9) as disk:
        assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    writes = 10**9 - disk.left
    assert writes > 100
    whole = trajectory(tmp_path / "whole")
    for limit in (*range(16), *range(16, writes, 11)):
        folder = tmp_path / f"after-{limit}"
        with full_after(folder, limit):
            result = run(*words, "--out", folder)
        assert_told(result, folder)
        assert "--resume" in result.stderr, limit
        again = ["--resume"] if any(folder.glob("records.jsonl")) else []
        assert run(*words, "--out", folder, *again).exit_code == 0
        assert trajectory(folder) == whole, limit
        shutil.rmtree(folder)


def test_a_comparison_outlives_it_too(tmp_path: Path) -> None:
    """Case 76: the same command goes on; its tables and figures need the disk as well."""
    words = ("compare", "clouds", "--optimizers", "sgd,adamw", "--seeds", 1, "--epochs", 1)
    with full_after(tmp_path, 10**9) as disk:
        assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    writes = 10**9 - disk.left
    folder = tmp_path / "cut"
    for limit in (0, 1, 2, 3, writes // 8, writes // 4, writes // 2):
        with full_after(folder, limit):
            result = run(*words, "--out", folder)
        if result.exit_code:  # what an earlier try has made needs no room
            assert_told(result, folder)
    assert run(*words, "--out", folder).exit_code == 0
    for name in ("sgd-seed0", "adamw-seed0"):
        assert trajectory(folder / name) == trajectory(tmp_path / "whole" / name)


def test_a_small_real_disk(tmp_path: Path) -> None:
    """Case 76: what the kernel and torch really do there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if not (mount and unmount) or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("this container can mount no small disk")
    try:
        words = ["train", "digits", "--optimizer", "sgd", "--epochs", "2", "--out", str(disk)]
        command = [sys.executable, "-m", "thor_bench.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "No space left" in done.stderr
        assert list(disk.glob("*.tmp")) == []
        grown = [mount, "-o", "remount,size=20m", str(disk)]
        subprocess.run(grown, check=True, capture_output=True)  # noqa: S603
        done = subprocess.run(  # noqa: S603
            [*command, "--resume"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert read_run(disk).end is not None
    finally:
        subprocess.run([unmount, str(disk)], check=True, capture_output=True)  # noqa: S603
