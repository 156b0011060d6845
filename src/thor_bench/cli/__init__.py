"""The ``thor`` command as a module: tells a user without its dependencies what to install."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def load() -> "typer.Typer":
    """Imports the command line, or ends with what is missing."""
    try:
        from thor_bench.cli.commands import app  # noqa: PLC0415 - what may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("torch_thor", "thor_bench")):
            raise
        message = f"thor: needs the package {error.name!r}; pip install 'torch-thor[bench]'\n"
        sys.stderr.write(message)
        sys.exit(2)
    return app


def main() -> None:
    """Runs the command line."""
    load()(prog_name="thor")
