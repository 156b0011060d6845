"""Promise: the ``thor`` command remembers, can be stopped at any moment, and says what it means."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from thor_bench.cli import main
from thor_bench.cli.commands import app
from thor_bench.errors import RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.reading import read_run
from thor_bench.records.records import RunFinished
from thor_bench.tasks import find_task
from thor_bench.training.train import train

if TYPE_CHECKING:
    from thor_bench.records.records import Record

ROOT = Path(__file__).parents[2]


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class StopsAtOnce:
    """Asks a run to stop at its first record."""

    _sent = False

    def observe(self, _record: Record) -> None:
        if not self._sent:
            self._sent = True
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        pass


def stopped(out: Path, *, preset: str | None = None, changes: tuple[str, ...] = ()) -> Path:
    """The folder of a run of its own kind that was stopped in its first epoch."""
    options = RunOptions(epochs=0.5, batch_size=128, evals_per_epoch=2, preset=preset)
    config = plan_run(find_task("digits"), "adamw", seed=3, changes=changes, options=options)
    with pytest.raises(RunInterruptedError):
        train(config, out, observers=[StopsAtOnce()])
    return out


def test_resume_needs_the_folder_alone(tmp_path: Path) -> None:
    """Case 77: optimizer, settings, horizon, seed and batch are on record."""
    out = stopped(tmp_path / "run", changes=("lr=0.07",))
    before = read_run(out).config
    result = run("train", "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    ended = read_run(out)
    assert isinstance(ended.end, RunFinished)
    assert ended.config == before
    assert (before.optimizer, before.epochs, before.seed) == ("adamw", 0.5, 3)


def test_what_is_repeated_may_be_some_of_it(tmp_path: Path) -> None:
    """Case 77."""
    out = stopped(tmp_path / "run", changes=("lr=0.07",))
    words = ("digits", "--optimizer", "adamw", "--set", "lr=0.07", "--epochs", 0.5)
    assert run("train", *words, "--resume", "--out", out).exit_code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--epochs", 3), "epochs: 3 here, 0.5 there"),
        (("--seed", 0), "seed: 0 here, 3 there"),
        (("--batch-size", 64), "batch_size: 64 here, 128 there"),
        (("--evals-per-epoch", 1), "evals_per_epoch: 1 here, 2 there"),
        (("--set", "lr=0.5"), "lr: 0.5 here, 0.07 there"),
        (("--optimizer", "thor"), "optimizer: thor here, adamw there"),
        (("tabular",), "workload: tabular here, digits there"),
        (("--preset", "defaults"), "lr: 0.001 here, 0.07 there"),
    ],
)
def test_what_is_said_otherwise_is_refused(
    words: tuple[object, ...], told: str, tmp_path: Path
) -> None:
    """Case 77: even where it is what would hold if nothing were said."""
    out = stopped(tmp_path / "run", changes=("lr=0.07",))
    result = run("train", *words, "--resume", "--out", out)
    assert result.exit_code == 2
    assert told in result.stderr
    assert read_run(out).end is None


@pytest.mark.parametrize("again", [(), ("--preset", "defaults")])
def test_a_run_of_a_preset_goes_on_with_and_without_its_name(
    again: tuple[str, ...], tmp_path: Path
) -> None:
    """Case 77."""
    out = stopped(tmp_path / "run", preset="defaults")
    assert run("train", *again, "--resume", "--out", out).exit_code == 0


def test_the_version() -> None:
    """Case 77."""
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("thor ")
    assert f"torch {torch.__version__}" in result.stdout


# What the installed script does, in a process that sends itself SIGINT just before something.
INTERRUPTED = """
import os, signal, sys
event, ending = sys.argv.pop(1), sys.argv.pop(1)
def watch(name, arguments):
    if name == event and str(arguments[0]).endswith(ending):
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell may ignore it
sys.addaudithook(watch)
from thor_bench.cli import main
main()
"""


def interrupted(event: str, ending: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", INTERRUPTED, event, ending, *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "module", ["torch", "typer", "torch_thor.curvature.engine", "matplotlib.figure"]
)
def test_ctrl_c_while_modules_are_imported_ends_it_in_silence(module: str) -> None:
    """Case 77: as any other program of the shell."""
    done = interrupted("import", module, "workloads")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_in_a_command_is_told_in_a_word(tmp_path: Path) -> None:
    """Case 77: Python's own handler is back by then."""
    done = interrupted("open", ".thor-lock", "train", "digits", "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (130, "thor: stopped\n")


def test_the_installed_command_begins_there() -> None:
    """Case 77."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"thor": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize(
    ("words", "usual"),
    [
        ((), "lr=0.0355"),
        (("--optimizer", "sgd"), "lr=0.05"),
        (("--preset", "defaults"), "lr=0.03"),
    ],
)
def test_a_wrong_setting_is_told_the_recipes_own_value(words: tuple[str, ...], usual: str) -> None:
    """Case 77."""
    result = run("train", "digits", "--set", "lr=-1", *words)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"the usual value is {usual}\n")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_says_that_names_stand_for_tuned_recipes(command: str) -> None:
    """Case 73: what wins here on a built-in workload is not what a stranger's task gets."""
    told = " ".join(run(command, "--help").output.replace("│", " ").split())
    assert (
        "A name such as thor stands for a recipe that was tuned for the built-in workload" in told
    )
    assert "It is not what THOR does by default" in told
    assert "--preset defaults" in told
