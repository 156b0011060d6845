"""Files that stand whole or not at all, and what a disk that refuses them is told as."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pydantic import TypeAdapter, ValidationError

from thor_bench.errors import BenchError, reason

Kept = TypeVar("Kept")

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def is_refusal(error: OSError) -> bool:
    """Says whether the disk takes no more: full, over quota, read-only or broken."""
    return error.errno in _REFUSALS


@contextmanager
def written_whole(target: Path) -> Iterator[IO[bytes]]:
    """Gives a file that takes the place of ``target`` once all of it is on disk.

    Whatever happens before, the former file stays, and nothing stands beside it.
    """
    temporary = temporary_of(target)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep(value: object, path: Path) -> None:
    """Writes a dataclass as a JSON file."""
    with written_whole(path) as file:
        file.write(TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")


def kept(kind: type[Kept], path: Path, *, advice: str) -> Kept | None:
    """Reads a dataclass from its JSON file; None where there is none.

    Args:
        kind: The dataclass.
        path: The file.
        advice: What to do where the file is broken.

    Raises:
        BenchError: It is.
    """
    if not path.exists():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BenchError(f"{path} cannot be read ({reason(error)[:120]}); {advice}") from error


def measured_once(
    path: Path, kind: type[Kept], measure: Callable[[], Kept], *, again: bool = False, remedy: str
) -> Kept:
    """Reads a measurement from its JSON file, or makes it and keeps it there.

    Args:
        path: The file; its folder must exist.
        kind: Dataclass of the measurement.
        measure: Makes it.
        again: Whether to measure although there is a file.
        remedy: What a user whose file is broken is told to do.

    Raises:
        BenchError: The file is broken.
    """
    found = None if again else kept(kind, path, advice=remedy)
    if found is None:
        found = measure()
        keep(found, path)
    return found


def temporary_of(target: Path) -> Path:
    """Returns where a file grows before it takes its place; a killed process leaves it there."""
    return target.with_suffix(".tmp")


class Remembering:
    """A file for writers whose own errors hide why a write failed, as torch's do: ``refusal``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.refusal: OSError | None = None

    def write(self, data: bytes) -> int:
        """Writes, and keeps the error where that fails."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.refusal = self.refusal or error
            raise

    def flush(self) -> None:
        """Does nothing: who opened the file flushes it."""
