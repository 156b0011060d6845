"""How the command line ends: every user's mistake on one line of stderr, whoever found it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Never

import typer
from typer.core import TyperGroup

from thor_bench.errors import BenchError, RankError, RunInterruptedError
from thor_bench.records.disk import is_refusal
from thor_bench.training.ranks import speaks, world_size


class OneLineErrors(TyperGroup):
    """Prints every user's mistake as one line on stderr, whoever found it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command and exits."""
        kwargs["standalone_mode"] = False
        try:
            with _threads_leave_the_disk_to_us():
                code = super().main(*args, **kwargs)
        except RankError as error:
            _leave(str(error), error.exit_code)
        except BenchError as error:
            _leave(str(error) if speaks() else "", error.exit_code)
        except OSError as error:
            if not is_refusal(error):
                raise
            message = f"{error.filename or 'a file'} cannot be written ({error.strerror})"
            _leave(f"{message}; free the disk, then repeat the command", BenchError.exit_code)
        except typer.Abort:
            _leave("stopped", 130)
        except Exception as error:
            told = getattr(error, "format_message", None)  # typer's own parsing errors
            if told is None:
                raise
            if message := " ".join(told().split()):
                _leave(f"{message} (see thor --help)" if speaks() else "", 2)
            raise SystemExit(2) from error  # thor alone: its help is the message
        if code == RunInterruptedError.exit_code:  # typer's own answer to Ctrl-C is silence
            _leave("stopped", code)
        raise SystemExit(code if isinstance(code, int) else 0)

    def resolve_command(self, *args: Any, **kwargs: Any) -> Any:
        """Finds the command; only training can be shared by several processes."""
        name, command, rest = super().resolve_command(*args, **kwargs)
        if world_size() > 1 and name != "train":
            message = f"thor {name} is for one process, torchrun started {world_size()}"
            raise BenchError(f"{message}; run it without torchrun, or use thor train")
        return name, command, rest


@contextmanager
def _threads_leave_the_disk_to_us() -> Iterator[None]:
    """Keeps threads, such as TensorBoard's, from printing a traceback where the disk refuses.

    They hand the error on to whoever writes to them, which is told in one line.
    """
    former = threading.excepthook

    def told(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and is_refusal(arguments.exc_value)):
            former(arguments)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = former


def _leave(message: str, code: int) -> Never:
    """Ends with a message, or without one where another rank tells."""
    if message:
        typer.echo(f"thor: {message}", err=True)
    raise SystemExit(code)
