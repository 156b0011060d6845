"""The folder of a run: what may be begun, gone on with or replaced there."""

from pathlib import Path

import torch

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import RunConfig, command_line
from thor_bench.records.disk import temporary_of
from thor_bench.records.reading import read_run
from thor_bench.records.records import RECORDS_FILE, RunFailed, RunFinished
from thor_bench.training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from thor_bench.training.observers import TENSORBOARD_FOLDER


def has_run(directory: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (directory / RECORDS_FILE).exists() or (directory / CHECKPOINT_FILE).exists()


def has_records(directory: Path) -> bool:
    """Whether a folder holds a run that has begun to write records."""
    path = directory / RECORDS_FILE
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")  # a full disk may have cut the first one off


def is_pending(config: RunConfig, directory: Path) -> bool:
    """Whether a run is still to be made, or gone on with, in its folder.

    Raises:
        BenchError: The folder holds another run.
    """
    if not has_records(directory):
        return True
    run = read_run(directory)
    refuse_other(directory, config, run.config)
    return run.end is None


def make_directory(directory: Path) -> None:
    """Makes a folder and checks that files can be written there.

    Raises:
        BenchError: They cannot.
    """
    probe = directory / ".thor-probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"--out {directory} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; name a folder of yours with --out") from error


def begin(directory: Path) -> None:
    """Makes the folder ready for a new run; a former run's own files are removed.

    Raises:
        BenchError: The folder cannot be written.
    """
    make_directory(directory)
    checkpoint = directory / CHECKPOINT_FILE
    for path in (checkpoint, temporary_of(checkpoint), directory / RECORDS_FILE):
        path.unlink(missing_ok=True)
    for events in (directory / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
        events.unlink()


def forget_runs(directory: Path) -> None:
    """Removes the records and checkpoints of all runs in a folder and below it."""
    for name in (RECORDS_FILE, CHECKPOINT_FILE):
        for path in directory.rglob(name):
            begin(path.parent)


def refuse_other(directory: Path, config: RunConfig, stored: RunConfig) -> None:
    """Refuses a folder whose run is not the one that is asked for.

    Raises:
        BenchError: They differ; the message says in what.
    """
    if config.content != stored.content and config.workload == stored.workload:
        message = f"--out {directory} holds a run of {config.workload} as it was before a change"
        remedy = "begin anew with --overwrite (thor train, compare, tune), or name another --out"
        raise BenchError(f"{message}; {remedy}")
    if differences := config.differences(stored):
        message = f"--out {directory} holds another run ({'; '.join(differences)})"
        raise BenchError(f"{message}; ask for the same, or name another --out")


def reopen(directory: Path, config: RunConfig, device: torch.device) -> Checkpoint | None:
    """Finds where a run that was stopped goes on.

    Args:
        directory: Folder of the run.
        config: What the user asks for now.
        device: Where tensors are put.

    Returns:
        Its checkpoint, or None where it was stopped before the first one.

    Raises:
        BenchError: There is no run, it has ended, it is another run, or a file is broken.
    """
    if not has_run(directory):
        raise BenchError(f"--resume: {directory} holds no run; leave --resume out to begin one")
    make_directory(directory)
    temporary_of(directory / CHECKPOINT_FILE).unlink(missing_ok=True)  # of a killed process
    checkpoint = load_checkpoint(directory, device)
    if has_records(directory):
        run = read_run(directory)
        refuse_other(directory, config, run.config)
        if run.end is not None:
            raise _ended(directory, run.end)
    if checkpoint is not None:
        refuse_other(directory, config, checkpoint.config)
    return checkpoint


def _ended(directory: Path, end: RunFinished | RunFailed) -> BenchError:
    if isinstance(end, RunFailed):
        how = f"failed ({end.reason})"
        remedy = "change its settings and begin anew with --overwrite"
    else:
        how = "has reached its horizon" if end.ended is None else f"was ended early ({end.ended})"
        remedy = f"see it with {command_line('thor', 'report', str(directory))}"
    return BenchError(f"--resume: the run in {directory} {how}; {remedy}")
