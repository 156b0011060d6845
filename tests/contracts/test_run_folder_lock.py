"""Promise: one process at a time works in a folder; a second one is told at once which has it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.training.claim import LOCK_FILE, claimed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Works in a folder until its standard input ends.
HOLDER = """
import sys
from pathlib import Path
from thor_bench.training.claim import claimed
with claimed(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder, and the process that works in it."""
    folder = tmp_path / "held"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # noqa: S603 - our own script
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield folder, process
        process.kill()


COMMANDS = {
    "train": ["train", "digits", "--optimizer", "sgd", "--epochs", "0.2"],
    "overwrite": ["train", "digits", "--overwrite"],
    "resume": ["train", "digits", "--resume"],
    "compare": ["compare", "digits", "--optimizers", "sgd", "--seeds", "1", "--epochs", "0.2"],
    "paper": ["paper", "digits"],
    "split": ["split", "digits"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_refused_at_once(
    name: str, held: tuple[Path, subprocess.Popen[str]]
) -> None:
    """Case 76: in one line, with the first one's number; nothing is touched."""
    folder, process = held
    result = CliRunner().invoke(app, [*COMMANDS[name], "--out", str(folder)])
    assert result.exit_code == 2, result.output
    told = f"thor: --out {folder} is in use by process {process.pid}; wait for its end"
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]


def test_two_studies_share_no_folder(tmp_path: Path) -> None:
    """Case 76: a study works in a folder of its workload's name."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "digits")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # noqa: S603 - our own script
        assert process.stdout is not None
        process.stdout.readline()
        result = CliRunner().invoke(app, ["tune", "digits", "--out", str(tmp_path)])
        process.kill()
    assert result.exit_code == 2
    assert f"is in use by process {process.pid}" in result.stderr


def test_a_folder_is_free_as_soon_as_its_process_is_dead(
    held: tuple[Path, subprocess.Popen[str]],
) -> None:
    """Case 76: however it ended, nobody has to remove anything."""
    folder, process = held
    process.kill()
    process.wait()
    assert (folder / LOCK_FILE).exists()
    result = CliRunner().invoke(app, [*COMMANDS["train"], "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert not (folder / LOCK_FILE).exists()


def test_workers_that_are_forked_do_not_keep_it(tmp_path: Path) -> None:
    """Case 76: a loader's process may live on for a while after the one that trains is killed."""
    # Only the parent speaks: two that print at once may mix their lines.
    script = HOLDER.replace("    print(", "    if __import__('os').fork():\n        print(")
    command = [sys.executable, "-c", script, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # noqa: S603 - our own script
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
        process.wait()  # the child still waits for our end of its input
        with claimed(tmp_path):
            pass
        assert process.stdin is not None
        process.stdin.close()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []
    with claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
