"""Mistakes that a user can make, each told in one line.

The command line catches :class:`BenchError` in one place and prints its message; whatever else
escapes is a defect of the bench.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

import torch.distributed as dist

from torch_thor import CollectiveError


class BenchError(Exception):
    """A user's mistake or a broken file: one line that says what is wrong and what to do."""

    exit_code: ClassVar[int] = 2


class RunInterruptedError(BenchError):
    """The run was stopped by a signal after its state was saved."""

    exit_code: ClassVar[int] = 130


class RunDivergedError(BenchError):
    """The loss of a run became NaN or infinite."""

    exit_code: ClassVar[int] = 1


class RankError(BenchError):
    """What one of several ranks tells of a fault; an empty message where another one tells.

    Args:
        message: What the user is to read.
        exit_code: Status of the process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # an instance's own: another rank's kind


def unknown_choice(argument: str, value: str, allowed: Iterable[str]) -> BenchError:
    """Builds the error for a name that is not one of a fixed set, with the nearest one that is.

    Args:
        argument: How the user spells the argument, such as ``--optimizer``.
        value: What the user gave.
        allowed: Every accepted name.
    """
    names = sorted(allowed)
    message = f"{argument} {value!r} is unknown; allowed: {', '.join(names)}"
    close = get_close_matches(value.lower(), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "choose one of these"
    return BenchError(f"{message}; {hint}")


def reason(error: BaseException) -> str:
    """Returns the message of any exception on one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error is the failure of a collective; gloo's have no type of their own."""
    known = isinstance(error, CollectiveError | dist.DistError)
    return known or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


@contextmanager
def readable(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Tells in one line of whatever a broken file makes its reader raise.

    Raises:
        BenchError: The block raised.
    """
    try:
        yield
    except Exception as error:
        message = f"{path} is no readable {what} ({reason(error)[:120]})"
        raise BenchError(f"{message}; {remedy}") from error
