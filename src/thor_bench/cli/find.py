"""``thor find``: the learning rate for a task, from single steps."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from thor_bench.cli import options
from thor_bench.find import figure
from thor_bench.find.finder import Found, find_settings
from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.config import DataSource, command_line
from thor_bench.tasks import find_task
from thor_bench.training.rundir import make_directory
from thor_bench.training.session import Session


def find(
    workload: options.TaskName = "digits",
    *,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the curve.")] = None,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
) -> None:
    """Find THOR's learning rate for a task, in a tenth of the steps of one run.

    A run begins at the usual rate; single steps from there, each at another, are all taken back.
    """
    task = find_task(workload)
    run = RunOptions(epochs=epochs, batch_size=batch_size, device=device, preset=DEFAULTS)
    config = plan_run(task, "thor", seed=seed, changes=["overshoot=none"], options=run)
    options.told(task)
    directory = out or Path("runs") / task.label / "find"
    make_directory(directory)
    source = DataSource(data_dir, download)
    found = find_settings(Session(config, task, source))
    _tell(found, figure.write(found, directory).light)
    if not found.gains:
        return
    typer.echo(f"take THOR(model, lr={found.rate:.2g}), or here:")
    again = command_line(
        "thor", "train", workload,
        preset=DEFAULTS,
        epochs=epochs,
        batch_size=batch_size,
        device=None if device == "cpu" else device,
        set=[f"lr={found.rate:.2g}"],
    )  # fmt: skip
    typer.echo(f"  {shlex.join([*shlex.split(again), *source.words])}")


def _tell(found: Found, curve: Path) -> None:
    """Shows what the single steps gave, and where their curve is."""
    console = options.console
    console.print(figure.table(found).to_rich("Single steps", console))
    rates = [one.rate for one in found.rates]
    console.print(f"rate {rates[0]:.2g} {figure.line(found)} {rates[-1]:.2g}", highlight=False)
    if found.ways > 1:
        typer.echo(
            f"at the usual rate {found.usual:g} the loss rose, or did not fall, within "
            f"{found.way} steps; all was done again at a tenth, and {found.gone:g} holds"
        )
    if found.gains and found.best is found.rates[0]:
        typer.echo("the best is the lowest rate tried: a lower one than this may be better yet")
    typer.echo(
        f"{found.taken} steps of {found.total} ({found.taken / found.total:.0%}); curve: {curve}"
    )
    if not found.gains:
        typer.echo(f"no step made the loss of unseen batches lower: keep {found.rate:g}")
