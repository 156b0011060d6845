"""Arguments that commands share, and who listens to the runs that they make."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from thor_bench.tasks import Workload
from thor_bench.training.observers import Observer, TensorBoardObserver, TerminalObserver

console = Console()

# Under the help of commands that take optimizers by name.
RECIPES_ARE_TUNED = (
    "A name such as thor stands for a recipe that was tuned for the built-in workload: settings, "
    "horizon and batch. It is not what THOR does by default on a task of yours; that is what "
    "--preset defaults trains, each optimizer by its own defaults."
)

WorkloadArgument = Annotated[str, typer.Argument(help="Name of the workload (thor workloads).")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]
TargetOption = Annotated[
    float | None, typer.Option(help="Value of the metric to time, such as 91.5.")
]
EpochsOption = Annotated[
    float | None, typer.Option(help="Horizon in epochs instead of the recipe's; fractions too.")
]
EvaluationsOption = Annotated[int, typer.Option(help="Evaluations of the test set per epoch.")]
BatchOption = Annotated[int | None, typer.Option(help="Samples per step.")]
DeviceOption = Annotated[str, typer.Option(help="torch device that trains.")]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder with the workload's files, instead of the usual places.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="In the place of the tuned recipes: a published set-up (paper-256, docs/paper.md), or "
        "defaults, each optimizer's own, nothing tuned."
    ),
]
PeersOption = Annotated[str, typer.Option(help="Names of recipes, separated by commas.")]
SeedsOption = Annotated[int, typer.Option(help="Number of seeds.")]
ToTargetOption = Annotated[bool, typer.Option("--to-target", help="End each run at the target.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="OPTIMIZER.KEY=VALUE", help="Change one setting."),
]
HorizonsOption = Annotated[
    str | None, typer.Option(help="Horizons by optimizer, such as thor=3,sgd=6.")
]
FinalistsOption = Annotated[
    int, typer.Option(help="Best trials of each that run with two more seeds before one wins.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Processes that read image files; one per core.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch missing data files.")]


def names_in(words: str) -> list[str]:
    """Returns names that are separated by commas."""
    return [name.strip() for name in words.split(",") if name.strip()]


def observers_of(task: Workload, directory: Path, title: str) -> list[Observer]:
    """Returns who listens to a run on the command line."""
    return [
        TerminalObserver(console, title=title, metric=task.metric),
        TensorBoardObserver(directory, task.metric),
    ]
