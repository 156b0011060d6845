"""The ``thor`` command: Ctrl-C ends it without a traceback from the first moment on."""

import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Loads the command line and runs it.

    While torch and its like are imported, which takes seconds, there is nothing to save: SIGINT
    ends the process at once, as it ends any program of the shell. Python's handler is back then.
    """
    usual = signal.getsignal(signal.SIGINT)
    # A shell may have it ignored.
    quiet = signal.SIG_DFL if usual is signal.default_int_handler else usual
    try:
        app = _load(quiet)
    finally:
        signal.signal(signal.SIGINT, usual)
    app(prog_name="thor")


def _load(quiet: Any) -> "typer.Typer":
    """Imports the command line under a handler of SIGINT, or ends with what is missing."""
    try:
        signal.signal(signal.SIGINT, quiet)
        import polars  # noqa: F401, ICN001, PLC0415 - it puts a handler of its own in place

        signal.signal(signal.SIGINT, quiet)
        from thor_bench.cli.commands import app  # noqa: PLC0415 - takes time, may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("torch_thor", "thor_bench")):
            raise
        message = f"thor: needs the package {error.name!r}; pip install 'torch-thor[bench]'\n"
        sys.stderr.write(message)
        sys.exit(2)
    return app
