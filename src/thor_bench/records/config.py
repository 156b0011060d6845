"""What one training run is: the identity that its records and its checkpoint carry."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

SettingValue = bool | int | float | str | None


@dataclass(frozen=True)
class DataSource:
    """Where a workload may find its files.

    Attributes:
        directory: Folder that the user named, searched first.
        download: Whether missing files may be fetched.
        workers: Processes that read files of large data sets; None takes one per core.
    """

    directory: Path | None = None
    download: bool = False
    workers: int | None = None

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
    """Everything that decides the trajectory of a run.

    Attributes:
        workload: Name of the workload.
        optimizer: Name of the optimizer.
        settings: Every setting of the optimizer, defaults included.
        epochs: Horizon of the schedule, in epochs; the last one may be a part.
        seed: Seed of the weights, the data order and the augmentation.
        batch_size: Samples per step.
        evals_per_epoch: Evaluations of the test set per epoch.
        record_every: Steps between two step records.
        device: torch device that trains.
    """

    workload: str
    optimizer: str
    settings: Mapping[str, SettingValue]
    epochs: float
    seed: int
    batch_size: int
    evals_per_epoch: int = 1
    record_every: int = 10
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Folder name of the run, unique within one comparison."""
        return f"{self.optimizer}-seed{self.seed}"

    def differences(self, other: "RunConfig") -> list[str]:
        """Lists, as ``field: mine, theirs``, what this run does otherwise than another."""
        found = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "settings":
                found += [
                    f"{key}: {mine.get(key)} here, {theirs.get(key)} there"
                    for key in sorted({*mine, *theirs})
                    if mine.get(key) != theirs.get(key)
                ]
            elif mine != theirs:
                found.append(f"{field.name}: {_short(mine)} here, {_short(theirs)} there")
        return found

    def command(self, directory: Path) -> str:
        """Returns the ``thor train`` command that makes this run in ``directory``."""
        words = ["thor", "train", self.workload, "--optimizer", self.optimizer]
        for key, value in self.settings.items():
            words += ["--set", f"{key}={'none' if value is None else value}"]
        words += ["--epochs", f"{self.epochs:.15g}", "--seed", str(self.seed)]
        words += ["--batch-size", str(self.batch_size)]
        words += ["--evals-per-epoch", str(self.evals_per_epoch)]
        words += ["--device", self.device, "--out", str(directory)]
        return shlex.join(words)


def _short(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def steps_until(epochs: float, steps_per_epoch: int) -> int:
    """Returns the steps of a horizon in epochs, at least one."""
    return max(1, round(epochs * steps_per_epoch))
