"""Measurements that are made once and kept in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from thor_bench.errors import BenchError, reason
from thor_bench.records.disk import written_whole

T = TypeVar("T")


def measured_once(
    path: Path, kind: type[T], measure: Callable[[], T], *, again: bool = False, remedy: str
) -> T:
    """Reads a measurement, or makes it and writes it: the file is whole or not there.

    Args:
        path: JSON file that keeps it; its folder must exist.
        kind: Dataclass of the measurement.
        measure: Makes it.
        again: Whether to measure although there is a file.
        remedy: What a user whose file is broken is told to do.

    Raises:
        BenchError: The file is broken.
    """
    adapter = TypeAdapter(kind)
    if path.exists() and not again:
        try:
            return adapter.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            message = f"{path} cannot be read ({reason(error)[:120]})"
            raise BenchError(f"{message}; {remedy}") from error
    found = measure()
    with written_whole(path) as file:
        file.write(adapter.dump_json(found, indent=1) + b"\n")
    return found
