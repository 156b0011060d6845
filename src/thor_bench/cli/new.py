"""``thor new``: a commented task file that runs as it is."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from thor_bench.errors import BenchError, reason
from thor_bench.tasks import is_file

_TEMPLATE = "new_task.txt"


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where, such as my_task.py.")],
) -> None:
    """Write a task file to begin with: a small model, its data, its loss and its metric."""
    if not is_file(file.name):
        better = file.with_suffix(".py") if file.name.strip(".") else "my_task.py"
        raise BenchError(f"FILE {file} must end in .py; try: thor new {shlex.quote(str(better))}")
    text = files("thor_bench.cli").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text.format(file=file))
    except FileExistsError as error:
        message = f"FILE {file} is there already, and stays as it is"
        raise BenchError(f"{message}; name another") from error
    except OSError as error:
        message = f"FILE {file} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; name a folder of yours") from error
    typer.echo(f"{file} runs as it is; see its comments, then put your own in place")
    named = shlex.quote(str(file))
    typer.echo(f"next: thor compare {named} --optimizers thor,muon,adamw --seeds 1")
