"""The diary of a run: typed events, one JSON object a line.

A run writes its records as they happen, so that whatever ends it, what was measured stays on disk.
Every table and figure is made from these files alone.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from thor_bench.errors import BenchError
from thor_bench.records.config import RunConfig, steps_until
from thor_bench.records.machine import Machine
from thor_bench.records.task_card import TaskCard

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """First line of every run."""

    config: RunConfig
    machine: Machine
    steps_per_epoch: int
    parameters: int  # trained values in the model
    metric: str
    started: str  # time of day, ISO 8601 with zone
    ranks: int = 1  # processes that train together, each on its part of every batch
    task: TaskCard | None = None  # what readers need to know of it
    kind: Literal["started"] = "started"

    @property
    def total_steps(self) -> int:
        """Steps until the horizon."""
        return steps_until(self.config.epochs, self.steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class RunResumed:
    """The run went on from its checkpoint, taken after ``step`` of ``total_steps`` steps."""

    step: int
    total_steps: int
    machine: Machine
    resumed: str
    ranks: int = 1
    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of a run: steps, epochs and seconds of training (nothing else counts) so far."""

    step: int
    epoch: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepRecord(Moment):
    """State after one optimizer step: the loss of its batch, and its learning rate."""

    loss: float
    lr: float | None  # None where steps find their length by themselves
    kind: Literal["step"] = "step"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Moment):
    """Result on the full test set, measured outside the clock."""

    train_loss: float  # mean since the epoch began
    test_loss: float | None  # None where the metric alone is known
    test_metric: float
    kind: Literal["evaluation"] = "evaluation"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Cost of one finished epoch, the last of which the horizon may have cut short."""

    epoch: int  # from 1
    step: int
    seconds: float
    epoch_seconds: float
    train_loss: float
    peak_memory_mb: float  # of the process (or the GPU) in this run so far, MiB
    wait_seconds: float = 0.0  # part of epoch_seconds in which training waited for batches
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class DecisionRecord:
    """What a trace rule decided for one layer at one refresh."""

    layer: str
    step: int
    decision: str  # update, keep or freeze
    change: float | None  # Δ of the trace; None where it is not finite (first refresh)
    norm: float | None = None  # Frobenius norm of A ⊗ G after the refresh
    kind: Literal["decision"] = "decision"


@dataclass(frozen=True, kw_only=True)
class StatisticsRecord:
    """What ``statistics()`` said of one layer at an evaluation; None where it is not finite."""

    layer: str
    step: int
    size: tuple[int, int]  # rows of A and G
    age: float | None
    change: float | None
    rank_a: float | None
    rank_g: float | None
    condition_a: float | None
    condition_g: float | None
    ratio: float | None  # length of the step ÷ length of the weight
    turned: float | None
    failures: int
    kind: Literal["statistics"] = "statistics"


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """Last line of a run that reached its horizon, or that ended before it by intent."""

    step: int
    seconds: float
    best_metric: float
    final_metric: float
    ended: str | None = None  # why before the horizon
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, kw_only=True)
class RunFailed:
    """Last line of a run that cannot go on, with the reason."""

    step: int
    seconds: float
    reason: str
    kind: Literal["failed"] = "failed"


Record = (
    RunStarted
    | RunResumed
    | StepRecord
    | EvaluationRecord
    | EpochRecord
    | DecisionRecord
    | StatisticsRecord
    | RunFinished
    | RunFailed
)

_ADAPTER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def to_json(record: Record) -> str:
    """Returns the record as one line of JSON, without the line break."""
    return _ADAPTER.dump_json(record).decode()


def from_json(line: str) -> Record:
    """Returns the record that a line of JSON holds, or raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(line)


class RecordWriter(AbstractContextManager["RecordWriter"]):
    """Appends records to a run's file; as an observer it writes each event when it happens.

    Args:
        directory: Folder of the run; must exist.
        keep_bytes: Length to which an existing file is cut first: what a checkpoint knows of.
    """

    def __init__(self, directory: Path, *, keep_bytes: int = 0) -> None:
        path = directory / RECORDS_FILE
        if keep_bytes and (not path.exists() or path.stat().st_size < keep_bytes):
            message = f"{path} is shorter than its checkpoint says; start anew with --overwrite"
            raise BenchError(message)
        self._file = path.open("ab")
        self._file.truncate(keep_bytes)

    def observe(self, record: Record) -> None:
        """Writes one record and hands it to the operating system."""
        self._file.write(to_json(record).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Puts everything on disk and returns the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __exit__(self, *_error: object) -> None:
        self.close()
