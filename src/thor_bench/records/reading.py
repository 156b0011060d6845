"""The records of runs, read back from their folders."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import RunConfig
from thor_bench.records.records import (
    RECORDS_FILE,
    DecisionRecord,
    EpochRecord,
    EvaluationRecord,
    Record,
    RunFailed,
    RunFinished,
    RunStarted,
    StatisticsRecord,
    StepRecord,
    from_json,
)


@dataclass(frozen=True)
class Run:
    """All records of one run, sorted by kind, in the order of their steps."""

    directory: Path
    started: RunStarted
    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    epochs: tuple[EpochRecord, ...]
    decisions: tuple[DecisionRecord, ...]
    end: RunFinished | RunFailed | None
    statistics: tuple[StatisticsRecord, ...] = ()

    @property
    def config(self) -> RunConfig:
        """What the run was asked to do."""
        return self.started.config

    @property
    def whole_epochs(self) -> list[EpochRecord]:
        """Epochs that the horizon did not cut short."""
        return [one for one in self.epochs if not one.step % self.started.steps_per_epoch]


def _lines(path: Path) -> Iterable[Record]:
    """Yields the records of a file; a last line without its line break is half-written: skipped."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield from_json(line)
            except ValidationError as error:
                message = f"{path}, line {number}: no record of thor ({reason(error)[:80]} …)"
                raise BenchError(f"{message}; remove the line or the run") from error


def read_run(directory: Path) -> Run:
    """Reads the records of the run in a folder.

    Raises:
        BenchError: There is no run, or a line is not a record.
    """
    path = directory / RECORDS_FILE
    if not path.is_file():
        raise BenchError(f"{directory} holds no run: {RECORDS_FILE} is missing; train one first")
    try:
        records = list(_lines(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {reason(error)}") from error
    if not records or not isinstance(records[0], RunStarted):
        raise BenchError(f"{path} does not begin with a run's start; remove the run")
    return Run(
        directory=directory,
        started=records[0],
        steps=tuple(r for r in records if isinstance(r, StepRecord)),
        evaluations=tuple(r for r in records if isinstance(r, EvaluationRecord)),
        epochs=tuple(r for r in records if isinstance(r, EpochRecord)),
        decisions=tuple(r for r in records if isinstance(r, DecisionRecord)),
        statistics=tuple(r for r in records if isinstance(r, StatisticsRecord)),
        end=next((r for r in reversed(records) if isinstance(r, RunFinished | RunFailed)), None),
    )


def stored_config(directory: Path) -> RunConfig | None:
    """Returns what the run in a folder was asked to do; None where no readable run begins there."""
    try:
        return read_run(directory).config
    except BenchError:
        return None


def find_runs(directory: Path) -> list[Run]:
    """Reads every run in a folder and below it, in the order of their names."""
    return [read_run(path.parent) for path in sorted(directory.rglob(RECORDS_FILE))]
