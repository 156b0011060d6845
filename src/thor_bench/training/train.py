"""One training run: where it begins or goes on, who listens, and how it may fail."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.disk import is_refusal
from thor_bench.records.records import RecordWriter
from thor_bench.tasks import find_workload
from thor_bench.training import rundir
from thor_bench.training.checkpoint import Checkpoint
from thor_bench.training.claim import claimed
from thor_bench.training.loop import Loop, RunResult
from thor_bench.training.observers import Observer
from thor_bench.training.ranks import Ranks
from thor_bench.training.session import Session
from thor_bench.training.signals import StopRequest


def train(
    config: RunConfig,
    directory: Path,
    *,
    source: DataSource | None = None,
    observers: Sequence[Observer] = (),
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008 - it has no state
) -> RunResult:
    """Trains one run in its folder, from the beginning or from its checkpoint.

    Args:
        config: The run.
        directory: Its folder; made where missing.
        source: Where data may be found.
        observers: Receive every record as it happens; closed at the end.
        resume: Go on with the run that stands in the folder.
        overwrite: Replace the run that stands in the folder.
        ranks: Processes that train it together; the first one writes and is observed.

    Returns:
        What the run reached.

    Raises:
        BenchError: Anything that the user can mend; RunDivergedError for a loss that is not finite,
            RunInterruptedError after SIGINT or SIGTERM, with all state saved.
    """
    try:
        return _train(
            config, directory, source, observers, ranks, resume=resume, overwrite=overwrite
        )
    except OSError as error:  # of a file that is closed on the way out, too
        if is_refusal(error):
            raise _cannot_write(directory, error) from error
        raise


def _train(
    config: RunConfig,
    directory: Path,
    source: DataSource | None,
    observers: Sequence[Observer],
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
) -> RunResult:
    workload = find_workload(config.workload)
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(claimed(directory))
        for observer in observers:
            stack.callback(observer.close)
        resume = resume or (ranks.restarted and rundir.has_run(directory))
        find = partial(_checkpoint, directory, config, ranks, resume=resume, overwrite=overwrite)
        checkpoint = ranks.from_first(find)
        session = Session(config, workload, source or DataSource(), ranks)
        if not ranks.is_first:
            stop = stack.enter_context(StopRequest())
            return Loop(session, directory, checkpoint, None, ()).run(stop)
        if not resume:
            rundir.begin(directory)  # only now: a run on disk outlives whatever failed before
        try:
            keep = checkpoint.records_bytes if checkpoint else 0
            writer = stack.enter_context(RecordWriter(directory, keep_bytes=keep))
            stop = stack.enter_context(StopRequest())
            return Loop(session, directory, checkpoint, writer, observers).run(stop)
        except OSError as error:
            raise _cannot_write(directory, error) from error


def _cannot_write(directory: Path, error: OSError) -> BenchError:
    message = f"{directory} cannot be written ({reason(error)})"
    again = "with --resume (thor train) or by the same command again (all others)"
    return BenchError(f"{message}; free the disk, then go on {again}")


def _checkpoint(
    directory: Path, config: RunConfig, ranks: Ranks, *, resume: bool, overwrite: bool
) -> Checkpoint | None:
    """Returns where a run goes on, or None where it begins.

    Raises:
        BenchError: The folder holds a run that must not be lost, or none that can go on.
    """
    if resume:
        alone = ranks.size == 1
        # What goes to other processes goes through this one's memory.
        device = ranks.device(config.device) if alone else torch.device("cpu")
        return rundir.reopen(directory, config, device)
    if not overwrite:
        rundir.refuse_existing(directory)
    return None
