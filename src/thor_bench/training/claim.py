"""One process at a time in a folder: a lock that the system takes back when its process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from thor_bench.errors import BenchError
from thor_bench.training import rundir

LOCK_FILE = ".thor-lock"


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Keeps other processes out of a folder while the block runs.

    The folder is made where it is missing, and goes again where the block left nothing in it.

    Raises:
        BenchError: Another process is at work there, or the folder cannot be written.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    rundir.make_directory(directory)
    lock = directory / LOCK_FILE
    file = _locked(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # not empty: the block's own
            for path in made:
                path.rmdir()


def _locked(lock: Path) -> IO[str]:
    """Opens and locks the file that stands under a name, and writes this process's number in it."""
    while True:
        file = lock.open("a+")
        try:
            # Belongs to the process: workers that it forks neither inherit nor outlive it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(file)
            file.close()
            message = f"--out {lock.parent} is in use by {holder}"
            raise BenchError(f"{message}; wait for its end, or name another --out") from error
        except OSError:
            return file  # a file system without locks
        if _stands(file, lock):
            break
        file.close()  # whoever had it before has removed it in between
    with suppress(OSError):  # a full disk: locked all the same
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file


def _stands(file: IO[str], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    number = file.read().strip()
    return f"process {number}" if number.isdigit() else "another process"
