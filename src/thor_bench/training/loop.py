"""The loop of one training run, from wherever it stands to its end."""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Never

from torch import Tensor

from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError, reason
from thor_bench.records.machine import describe_machine
from thor_bench.records.records import (
    EpochRecord,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    StepRecord,
)
from thor_bench.tasks.data import Batch
from thor_bench.training.checkpoint import Checkpoint, Progress, save_checkpoint
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.observers import Observer
from thor_bench.training.session import Session
from thor_bench.training.signals import StopRequest
from thor_bench.training.timing import Stopwatch, peak_memory_mb, reset_peak_memory, wake
from torch_thor import CurvatureError, NonFiniteGradientError


class Loop:
    """Trains a session to its end, with clock, records and checkpoints.

    Args:
        session: What is trained.
        directory: Folder of the run.
        checkpoint: Where the run stands; None at its beginning.
        writer: Writes the records; None on every rank but the first.
        observers: Receive each record too.
        early_stop: What ends the run before its horizon, or None.
    """

    def __init__(
        self,
        session: Session,
        directory: Path,
        checkpoint: Checkpoint | None,
        writer: RecordWriter | None,
        observers: Sequence[Observer],
        early_stop: EarlyStop | None,
    ) -> None:
        self._session, self._config, self._ranks = session, session.config, session.ranks
        self._directory = directory
        self._writer = writer
        self._observers = observers if writer is None else (writer, *observers)
        self._early_stop = early_stop
        self._ended: str | None = None  # why, where it is before the horizon
        self._stopping = False
        self._loss = math.nan  # of the latest step's batch
        self._resumed = checkpoint is not None
        self._progress = Progress()
        if checkpoint is not None:
            session.restore(checkpoint)
            self._progress = checkpoint.progress
        self._clock = Stopwatch(session.device, self._progress.seconds)
        steps = session.data.steps_per_epoch
        count = min(self._config.evals_per_epoch, steps)
        self._evaluation_steps = {round(steps * (k + 1) / count) for k in range(count)}

    def run(self, stop: StopRequest) -> RunFinished:
        """Trains to the end."""
        wake(self._session.device)
        reset_peak_memory(self._session.device)
        self._announce()
        while self._ended is None and not self._at_horizon:
            self._epoch(stop)
        return self._finish()

    @property
    def _at_horizon(self) -> bool:
        return self._progress.step >= self._session.total_steps

    @property
    def _epochs_done(self) -> float:
        return self._progress.step / self._session.data.steps_per_epoch

    def _emit(self, record: Record) -> None:
        for observer in self._observers:
            observer.observe(record)

    def _announce(self) -> None:
        session = self._session
        machine, ranks = describe_machine(session.device), self._ranks.size
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if self._resumed:
            step, total = self._progress.step, session.total_steps
            self._emit(
                RunResumed(step=step, total_steps=total, machine=machine, resumed=now, ranks=ranks)
            )
            return
        self._emit(
            RunStarted(
                config=self._config,
                machine=machine,
                steps_per_epoch=session.data.steps_per_epoch,
                parameters=session.parameters,
                metric=session.task.metric.name,
                started=now,
                ranks=ranks,
                task=session.task.card,
            )
        )

    def _epoch(self, stop: StopRequest) -> None:
        """Trains what is left of the present epoch, then closes it."""
        progress, data = self._progress, self._session.data
        left = self._session.total_steps - progress.step
        batches = islice(data.batches(progress.epoch, progress.step_in_epoch), left)
        steps = min(data.steps_per_epoch, progress.step_in_epoch + left)
        with self._clock.running():
            for batch in self._timed(batches):
                self._step(batch, stop)
                with self._clock.paused():
                    self._after_step()
                if self._ended is not None or self._stopping:
                    break
        if self._ended is not None:
            return
        if progress.step_in_epoch == steps:
            self._close_epoch()
        if self._stopping and not self._at_horizon:
            self._stop()

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on and adds up the time that each made training wait."""
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._progress.waited += time.perf_counter() - begun
            yield batch

    def _step(self, batch: Batch, stop: StopRequest) -> None:
        """Takes one step inside the clock."""
        progress, lr = self._progress, self._session.rule.lr
        try:
            self._session.step(batch, partial(self._hear, stop))
        except (CurvatureError, NonFiniteGradientError) as error:
            self._fail(f"{reason(error)} (step {progress.step + 1})")
        progress.step += 1
        progress.step_in_epoch += 1
        progress.loss_sum += self._loss
        if progress.step % self._config.record_every == 0 or progress.step == 1:
            epoch, seconds = self._epochs_done, self._clock.seconds
            self._emit(
                StepRecord(step=progress.step, epoch=epoch, seconds=seconds, loss=self._loss, lr=lr)
            )

    def _hear(self, stop: StopRequest, loss: Tensor) -> None:
        """Takes note of a step's loss; all ranks learn of it, and of a stop, alike."""
        total, asked = self._ranks.total([loss.item(), float(stop.asked)])
        self._loss, self._stopping = total / self._ranks.size, asked > 0
        if not math.isfinite(self._loss):
            self._fail(f"loss became {self._loss} at step {self._progress.step + 1}")

    def _after_step(self) -> None:
        """Writes what layers did and evaluates, where that is due, outside the clock."""
        for decision in self._session.rule.decisions():
            self._emit(decision)
        if self._at_horizon or self._progress.step_in_epoch in self._evaluation_steps:
            for record in self._session.rule.statistics(self._progress.step):
                self._emit(record)
            self._evaluate()

    def _evaluate(self) -> None:
        progress = self._progress
        test_loss, value = self._session.evaluate()
        metric = self._session.task.metric
        told = {"test loss": test_loss, f"test {metric.name}": value}
        for name, number in told.items():
            if number is not None and not math.isfinite(number):
                what = f"{name} became {number} after step {progress.step}"
                self._fail(what, of_metric=name != "test loss")
        best = progress.best_metric
        progress.best_metric = value if best is None else metric.best([best, value])
        progress.final_metric = value
        progress.seconds = self._clock.seconds
        record = EvaluationRecord(
            step=progress.step,
            epoch=self._epochs_done,
            seconds=progress.seconds,
            train_loss=progress.loss_sum / progress.step_in_epoch,
            test_loss=test_loss,
            test_metric=value,
        )
        self._emit(record)
        if self._early_stop is not None:
            self._ended = self._early_stop.reason(record)

    def _close_epoch(self) -> None:
        progress = self._progress
        seconds = self._clock.seconds
        self._emit(
            EpochRecord(
                epoch=progress.epoch + 1,
                step=progress.step,
                seconds=seconds,
                epoch_seconds=seconds - progress.epoch_start,
                train_loss=progress.loss_sum / progress.step_in_epoch,
                peak_memory_mb=peak_memory_mb(self._session.device),
                wait_seconds=progress.waited,
            )
        )
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.loss_sum = progress.waited = 0.0
        progress.epoch_start = seconds
        self._save()

    def _save(self) -> None:
        self._progress.seconds = self._clock.seconds
        records_bytes = self._writer.sync() if self._writer else 0
        state = self._session.snapshot(self._progress, records_bytes)
        if self._writer:
            save_checkpoint(self._directory, state)

    def _stop(self) -> Never:
        self._save()
        self._ranks.meet()  # no rank ends, and takes all with it, while the first one saves
        # The rest is on record; the device connects ranks that may not see the folder.
        command = ["thor", "train", self._config.workload, "--device", self._config.device]
        again = self._session.source.again(shlex.join(command), self._directory)
        message = f"stopped and saved at epoch {self._epochs_done:.2f}, step {self._progress.step}"
        raise RunInterruptedError(f"{message}; go on with: {self._ranks.launch(again)} --resume")

    def _fail(self, what: str, *, of_metric: bool = False) -> Never:
        """Ends the run; a metric may fail where the loss is finite."""
        self._emit(RunFailed(step=self._progress.step, seconds=self._clock.seconds, reason=what))
        name = f"{self._config.optimizer} on {self._config.workload}"
        lr = self._config.settings.get("lr")
        remedy = "look at the loss and its inputs"
        if not self._progress.step:
            remedy += ", no step has been taken"
        elif lr is not None:
            remedy = f"try a lower --set lr (it was {lr:g})"
            if of_metric:
                remedy = f"the loss was {self._loss:.3g}: look at the metric, or {remedy}"
        message = f"{name}: {what}; {remedy}"
        if self._progress.epoch:
            message += f"; the checkpoint of epoch {self._progress.epoch} is kept"
        raise RunDivergedError(f"{message}; records are in {self._directory}")

    def _finish(self) -> RunFinished:
        progress = self._progress
        best, final = progress.best_metric, progress.final_metric
        if best is None or final is None:
            raise BenchError(f"{self._directory}: no evaluation on record; use --overwrite")
        finished = RunFinished(
            step=progress.step,
            seconds=progress.seconds,
            best_metric=best,
            final_metric=final,
            ended=self._ended,
        )
        self._emit(finished)
        return finished
