"""Arguments that commands share, and who listens to the runs that they make."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option, echo

from thor_bench.optimizers.registry import lacking
from thor_bench.tasks import Task
from thor_bench.training.observers import Observer, TensorBoardObserver, TerminalObserver
from thor_bench.training.ranks import speaks

console = Console(markup=False, emoji=False)  # names and units are shown as users wrote them

# Under the help of commands that take optimizers by name.
RECIPES_ARE_TUNED = (
    "A name such as thor stands for a recipe that was tuned for the built-in workload: settings, "
    "horizon and batch. It is not what THOR does by default on a task of yours; that is what "
    "--preset defaults trains, each optimizer by its own defaults, and what a task file trains."
)

TaskName = Annotated[
    str,
    Argument(
        metavar="TASK",
        help="A workload (thor workloads), or a file with your own task (thor new my_task.py).",
    ),
]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]
SetOf = Annotated[
    list[str] | None,
    Option("--set", metavar="OPTIMIZER.KEY=VALUE", help="Change one setting."),
]
Resume = Annotated[
    bool,
    Option("--resume", help="Go on with the stopped run in --out; what is left out is as it was."),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace the run in the folder.")]
OverwriteAll = Annotated[
    bool, Option("--overwrite", help="Make all runs anew, as after a change of the file.")
]
Target = Annotated[float | None, Option(help="Value of the metric to time, such as 91.5.")]
ToTarget = Annotated[bool, Option("--to-target", help="End each run at the target.")]
Epochs = Annotated[
    float | None, Option(help="Horizon in epochs instead of the recipe's; fractions too.")
]
Finalists = Annotated[
    int, Option(help="Best trials of each that run with two more seeds before one wins.")
]
Optimizers = Annotated[str, Option(help="Names of recipes, separated by commas.")]
Horizons = Annotated[str | None, Option(help="Horizons by optimizer, such as thor=3,sgd=6.")]
Evaluations = Annotated[int, Option(help="Evaluations of the test set per epoch.")]
BatchSize = Annotated[int | None, Option(help="Samples per step.")]
Device = Annotated[str, Option(help="torch device that trains.")]
DataDir = Annotated[
    Path | None, Option(help="Folder with the workload's files, instead of the usual places.")
]
Download = Annotated[bool, Option("--download", help="Fetch missing data files.")]
Workers = Annotated[
    int | None,
    Option(
        min=0,
        help="Processes that read ahead; without it one per core, and none for a task file.",
    ),
]
Preset = Annotated[
    str | None,
    Option(
        help="In the place of the tuned recipes: a published set-up (paper-256, docs/paper.md), or "
        "defaults, each optimizer's own, nothing tuned."
    ),
]


def told(task: Task) -> Task:
    """Says that nothing is tuned for a task of a user's file, and returns it."""
    if task.origin is not None and speaks():
        what = "nothing is tuned for it: each optimizer trains with its own defaults, but for --set"
        console.print(f"{task.name}: {what}", highlight=False, soft_wrap=True, style="dim")
    return task


def names_in(words: str) -> list[str]:
    """Returns names that are separated by commas."""
    return [name.strip() for name in words.split(",") if name.strip()]


def present(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the optimizers whose packages are there, and says which are not."""
    absent = lacking(names)
    for name, what in absent.items():
        echo(f"{name} {what}: left out")
    return tuple(name for name in dict.fromkeys(names) if name not in absent)


def observers_of(task: Task, directory: Path, title: str) -> list[Observer]:
    """Returns who listens to a run on the command line."""
    return [
        TerminalObserver(console, title=title, metric=task.metric),
        TensorBoardObserver(directory, task.metric),
    ]
