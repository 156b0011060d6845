"""Who listens to a run's records: the terminal and TensorBoard (the file: records.RecordWriter)."""

from collections import Counter
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from thor_bench.records.records import (
    DecisionRecord,
    EpochRecord,
    EvaluationRecord,
    Record,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    StepRecord,
)
from thor_bench.records.task_card import Measure

TENSORBOARD_FOLDER = "tensorboard"


class Observer(Protocol):
    """Receives each record of a run when it happens."""

    def observe(self, record: Record) -> None:
        """Takes note of one record."""

    def close(self) -> None:
        """Releases what the observer holds; called once, however the run ends."""


class TerminalObserver:
    """Shows a run live: a progress bar on a terminal, a line per evaluation elsewhere.

    Args:
        console: Where to write.
        title: Name of the run.
        metric: The workload's metric.
    """

    def __init__(self, console: Console, *, title: str, metric: Measure) -> None:
        self._console, self._title, self._metric = console, title, metric
        self._decisions: Counter[str] = Counter()
        self._loss = self._score = ""
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}", markup=False),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=None, live="")

    def observe(self, record: Record) -> None:
        """Shows one record."""
        match record:
            case RunStarted():
                self._begin(record.total_steps)
            case RunResumed():
                self._print(f"{self._title}: resumed at step {record.step}", style="dim")
                self._begin(record.total_steps, done=record.step)
            case StepRecord():
                self._loss = f"loss {record.loss:.3g}"
                self._refresh(record.step)
            case EvaluationRecord():
                self._score = f"{self._metric.name} {self._metric.format(record.test_metric)}"
                self._refresh(record.step)
                self._print(
                    f"{self._title}  epoch {record.epoch:5.2f}  {record.seconds:7.2f} s"
                    f"  train loss {record.train_loss:.4g}{_test_loss(record)}"
                    f"  {self._score}  {self._decision_text()}".rstrip(),
                    style="dim",
                )
            case DecisionRecord():
                self._decisions[record.decision] += 1
            case RunFinished():
                best, final = map(self._metric.format, (record.best_metric, record.final_metric))
                told = f"  {record.step} steps in {record.seconds:.2f} s"
                told += f"  {self._metric.name} {final} (best {best})"
                self._print(Text.assemble((self._title, "bold"), told))
            case RunFailed():
                told = f": {record.reason}"
                self._print(Text.assemble(f"{self._title}  ", ("failed", "bold"), told))

    def close(self) -> None:
        """Takes the progress bar away."""
        self._progress.stop()

    def _begin(self, total: int, *, done: int = 0) -> None:
        self._progress.update(self._task, total=total, completed=done)
        self._progress.start()

    def _refresh(self, step: int) -> None:
        parts = (self._loss, self._score, self._decision_text())
        live = " · ".join(part for part in parts if part)
        self._progress.update(self._task, completed=step, live=live)

    def _decision_text(self) -> str:
        if self._decisions.keys() <= {"update"}:
            return ""  # there is no trace rule, or it has not spoken yet
        return " ".join(f"{name} {count}" for name, count in sorted(self._decisions.items()))

    def _print(self, line: str | Text, style: str | None = None) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, style=style)


def _test_loss(record: EvaluationRecord) -> str:
    return "" if record.test_loss is None else f"  test loss {record.test_loss:.4g}"


class TensorBoardObserver:
    """Writes scalars for TensorBoard into the ``tensorboard`` folder of a run."""

    def __init__(self, directory: Path, metric: Measure) -> None:
        self._directory = str(directory / TENSORBOARD_FOLDER)
        self._metric = metric
        self._writer: SummaryWriter | None = None

    def observe(self, record: Record) -> None:
        """Writes the numbers of one record."""
        match record:
            case RunStarted():
                self._writer = SummaryWriter(self._directory)
            case RunResumed():
                self._writer = SummaryWriter(self._directory, purge_step=record.step)
            case StepRecord():
                self._add("train/loss", record.loss, record.step)
                if record.lr is not None:
                    self._add("train/lr", record.lr, record.step)
            case EvaluationRecord():
                if record.test_loss is not None:
                    self._add("test/loss", record.test_loss, record.step)
                self._add(f"test/{self._metric.name}", record.test_metric, record.step)
            case EpochRecord():
                self._add("cost/epoch_seconds", record.epoch_seconds, record.step)
                self._add("cost/peak_memory_mb", record.peak_memory_mb, record.step)
            case DecisionRecord(change=float() as change):
                self._add(f"curvature/{record.layer}/change", change, record.step)

    def close(self) -> None:
        """Writes what is still buffered."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)
