"""One training run: where it begins or goes on, who listens, and how it may fail."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.disk import is_refusal
from thor_bench.records.records import RecordWriter, RunFinished
from thor_bench.tasks import find_task
from thor_bench.training import rundir
from thor_bench.training.checkpoint import Checkpoint
from thor_bench.training.claim import claimed
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.loop import Loop
from thor_bench.training.observers import Observer
from thor_bench.training.ranks import ALONE, Ranks
from thor_bench.training.rehearsal import rehearse
from thor_bench.training.session import Session
from thor_bench.training.signals import StopRequest


def train(
    config: RunConfig,
    directory: Path,
    *,
    source: DataSource | None = None,
    observers: Sequence[Observer] = (),
    early_stop: EarlyStop | None = None,
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> RunFinished:
    """Trains one run in its folder, from the beginning or from its checkpoint.

    Args:
        config: The run.
        directory: Its folder; made where missing.
        source: Where data may be found.
        observers: Receive every record as it happens; closed at the end.
        early_stop: What ends it before its horizon, or None.
        resume: Go on with the run that stands in the folder.
        overwrite: Replace the run that stands in the folder.
        ranks: Processes that train it together; the first one writes and is observed.

    Returns:
        What the run reached.

    Raises:
        BenchError: Anything that the user can mend; RunDivergedError for a loss that is not finite,
            RunInterruptedError after SIGINT or SIGTERM, with all state saved.
    """
    with _told_of_the_disk(directory), ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(claimed(directory))
        for observer in observers:
            stack.callback(observer.close)
        resume = resume or (ranks.restarted and rundir.has_run(directory))
        find = partial(_checkpoint, directory, config, ranks, resume=resume, overwrite=overwrite)
        checkpoint = ranks.from_first(find)
        session = Session(config, find_task(config.workload), source or DataSource(), ranks)
        rehearse(session)
        writer, listening = None, observers if ranks.is_first else ()
        if ranks.is_first:
            if not resume:
                rundir.begin(directory)  # only now: what failed before spares a run on disk
            stack.enter_context(_told_of_the_disk(directory, every_error=True))
            keep = checkpoint.records_bytes if checkpoint else 0
            writer = stack.enter_context(RecordWriter(directory, keep_bytes=keep))
        loop = Loop(session, directory, checkpoint, writer, listening, early_stop)
        return loop.run(stack.enter_context(StopRequest()))


@contextmanager
def _told_of_the_disk(directory: Path, *, every_error: bool = False) -> Iterator[None]:
    """Tells of a disk that refuses, or of every error of a file, how to go on."""
    try:
        yield
    except OSError as error:
        if not (every_error or is_refusal(error)):
            raise
        message = f"{directory} cannot be written ({reason(error)})"
        again = "with --resume (thor train) or by the same command again (all others)"
        raise BenchError(f"{message}; free the disk, then go on {again}") from error


def _checkpoint(
    directory: Path, config: RunConfig, ranks: Ranks, *, resume: bool, overwrite: bool
) -> Checkpoint | None:
    """Returns where a run goes on, or None where it begins.

    Raises:
        BenchError: The folder holds a run that must not be lost, or none that can go on.
    """
    if resume:
        # What goes to other processes goes through this one's memory.
        device = ranks.device(config.device) if ranks.size == 1 else torch.device("cpu")
        return rundir.reopen(directory, config, device)
    if rundir.has_run(directory) and not overwrite:
        message = f"--out {directory} holds a run already; go on with --resume"
        raise BenchError(f"{message}, replace it with --overwrite, or name another --out")
    return None
