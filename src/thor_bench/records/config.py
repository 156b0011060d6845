"""What one training run is: the identity that its records and its checkpoint carry."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SettingValue = bool | int | float | str | None


def command_line(*words: str, **options: object) -> str:
    """Returns a command line.

    Args:
        words: Its first words.
        options: Values by option, ``_`` for ``-``. What is None, False or empty is left out, a
            list repeats its option, a tuple or mapping is separated by commas.
    """
    line = list(words)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            line.append(option)
        elif isinstance(value, list):
            line += [word for one in value for word in (option, one)]
        elif value is not None and value is not False and value not in ("", (), {}):
            line += [option, _text(value)]
    return shlex.join(line)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        value = tuple(f"{key}={_text(one)}" for key, one in value.items())
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class DataSource:
    """Where a workload may find its files."""

    directory: Path | None = None  # named by the user, searched first
    download: bool = False  # whether missing files may be fetched
    workers: int | None = None  # processes that read large data sets; None takes one per core

    @property
    def words(self) -> list[str]:
        """The options of a command line that finds the same files."""
        words = [] if self.directory is None else ["--data-dir", str(self.directory)]
        words += ["--download"] if self.download else []
        return words if self.workers is None else [*words, "--workers", str(self.workers)]

    def again(self, command: str, directory: Path) -> str:
        """Returns the command line that goes on in a folder with the same files."""
        return shlex.join([*shlex.split(command), "--out", str(directory), *self.words])


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the trajectory of a run."""

    workload: str
    optimizer: str
    settings: Mapping[str, SettingValue]  # all of the optimizer's, defaults included
    epochs: float  # horizon of the schedule; the last epoch may be a part
    seed: int  # of the weights, the data order and the augmentation
    batch_size: int | None  # None where the data give batches of their own
    evals_per_epoch: int = 1
    record_every: int = 10  # steps between two step records
    device: str = "cpu"
    content: str | None = None  # digest of the task's file; None of a built-in one

    @property
    def name(self) -> str:
        """Folder name of the run, unique within one comparison."""
        return f"{self.optimizer}-seed{self.seed}"

    def differences(self, other: "RunConfig") -> list[str]:
        """Lists, as ``field: mine, theirs``, what this run does otherwise than another."""
        mine, theirs = _values(self), _values(other)
        return [
            f"{key}: {_text(mine.get(key))} here, {_text(theirs.get(key))} there"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]

    def command(self, directory: Path) -> str:
        """Returns the ``thor train`` command that makes this run in ``directory``."""
        return command_line(
            "thor", "train", self.workload,
            optimizer=self.optimizer,
            set=[f"{k}={'none' if v is None else v}" for k, v in self.settings.items()],
            epochs=self.epochs,
            seed=self.seed,
            batch_size=self.batch_size,
            evals_per_epoch=self.evals_per_epoch,
            device=self.device,
            out=directory,
        )  # fmt: skip


def _values(config: RunConfig) -> dict[str, object]:
    """Returns every field by name, and every setting in the place of ``settings``."""
    values = dict(vars(config))
    return values | dict(sorted(values.pop("settings").items()))


def steps_until(epochs: float, steps_per_epoch: int) -> int:
    """Returns the steps of a horizon in epochs, at least one."""
    return max(1, round(epochs * steps_per_epoch))
