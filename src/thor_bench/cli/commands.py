"""The ``thor`` command line: each command parses, then calls the library."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from thor_bench.cli import options
from thor_bench.cli.find import find
from thor_bench.cli.league import league
from thor_bench.cli.new import new
from thor_bench.cli.one_line import OneLineErrors
from thor_bench.cli.options import RECIPES_ARE_TUNED, console
from thor_bench.cli.train import train
from thor_bench.cli.tune import tune
from thor_bench.compare import (
    CompareOptions,
    Comparison,
    checked_target,
    parse_horizons,
    plan_comparison,
    run_comparison,
)
from thor_bench.optimizers.recipes import RunOptions
from thor_bench.paper.runs import Job, ended_runs, make_runs, plan_paper
from thor_bench.paper.split import measure, measured, report_split
from thor_bench.paper.writer import PaperWriter
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.report.page import write_report
from thor_bench.report.tables import optimizers_table, workloads_table
from thor_bench.scaling.command import scale
from thor_bench.tasks import find_task
from thor_bench.training.claim import claimed
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import forget_runs, is_pending
from torch_thor import __version__

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train real workloads, compare optimizers by time to target, report.",
)


def _tell_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if asked:
        typer.echo(f"thor {__version__} (torch {torch.__version__})")
        raise typer.Exit


@app.callback()
def thor(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Gives the group its options; its help stands above."""


app.command()(scale)


@app.command()
def workloads() -> None:
    """List the workloads and their targets."""
    console.print(workloads_table())


@app.command()
def optimizers(workload: options.TaskName = "digits") -> None:
    """List the optimizers with their tuned settings for a workload."""
    console.print(optimizers_table(find_task(workload)))


app.command()(new)
app.command(epilog=RECIPES_ARE_TUNED)(train)


@app.command(epilog=RECIPES_ARE_TUNED)
def compare(
    workload: options.TaskName = "digits",
    *,
    optimizers: options.Optimizers = "thor,sgd,adamw",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    target: options.Target = None,
    to_target: options.ToTarget = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison.")] = None,
    changes: options.SetOf = None,
    epochs: options.Epochs = None,
    horizon: options.Horizons = None,
    evals_per_epoch: options.Evaluations = 1,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    preset: options.Preset = None,
    workers: options.Workers = None,
    overwrite: options.OverwriteAll = False,
) -> None:
    """Train several optimizers and seeds, and compare their time to a target.

    Runs that are on disk already are not repeated: a stopped comparison goes on where it was.
    """
    task = find_task(workload)
    run = RunOptions(epochs=epochs, batch_size=batch_size, device=device, preset=preset)
    comparison = plan_comparison(
        task,
        options.names_in(optimizers),
        CompareOptions(
            seeds=seeds,
            target=target,
            to_target=to_target,
            horizons=parse_horizons(horizon),
            changes=changes or (),
            run=replace(run, evals_per_epoch=evals_per_epoch),
        ),
    )
    directory = out or Path("runs") / f"compare-{options.told(task).label}"

    def observe(config: RunConfig, folder: Path, number: int) -> list[Observer]:
        title = f"[{number}/{len(comparison.runs)}] {config.name}"
        return options.observers_of(task, folder, title)

    source = DataSource(data_dir, download, workers)
    with claimed(directory):
        _make_room(comparison, directory, overwrite=overwrite)
        run_comparison(comparison, directory, source=source, observe=observe)
        report(directory)


def _make_room(comparison: Comparison, directory: Path, *, overwrite: bool) -> None:
    """Forgets earlier runs, or says how many stand; the rest are trained."""
    if overwrite:
        forget_runs(directory)
    runs = comparison.runs
    made = sum(not is_pending(config, directory / config.name) for config in runs)
    if made:
        told = f"{made} of {len(runs)} runs stand in {directory} and are not repeated"
        console.print(f"{told}; --overwrite makes them anew", highlight=False, soft_wrap=True)


app.command()(tune)
app.command()(league)
app.command()(find)


@app.command()
def split(
    workload: options.TaskName = "digits",
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of tables and figure.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and order.")] = 0,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
) -> None:
    """Measure what each block size loses and costs here (Table 1, Figure 5).

    Inversion times go to the cache that split=auto reads.
    """
    task = find_task(workload)
    directory = out or Path("runs") / f"split-{task.label}"
    with claimed(directory):
        found = measure(task, DataSource(data_dir, download), device=device, seed=seed)
        written = report_split(found, f"{workload} on {device}", directory)
    console.print(written.table.to_rich(f"Table 1, {workload} on {device}", console))
    console.print(written.layers.to_rich("Input factors", console))
    typer.echo(written.conclusion)
    typer.echo(f"figure: {written.figure.light}")


@app.command()
def paper(
    workload: options.TaskName = "digits",
    *,
    seeds: Annotated[int, typer.Option(help="Seeds of each optimizer.")] = 3,
    target: options.Target = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs, tables and figures.")] = None,
    epochs: options.Epochs = None,
    evals_per_epoch: options.Evaluations = 1,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    workers: options.Workers = None,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Train nothing: write from the runs on disk.")
    ] = False,
) -> None:
    """Make the paper's tables and figures for a workload, from runs made here.

    Runs that are on disk already are not repeated: a stopped command goes on where it was.
    """
    usual = find_task(workload)
    task = replace(usual, target=checked_target(usual, target))
    run = RunOptions(epochs=epochs, evals_per_epoch=evals_per_epoch, device=device)
    plan = plan_paper(task, seeds=seeds, options=run, target=target)
    directory = out or Path("runs") / f"paper-{task.label}"
    source = DataSource(data_dir, download, workers)

    def observe(job: Job, told: str) -> list[Observer]:
        return options.observers_of(task, directory / job.folder, f"{told} {job.folder.name}")

    with claimed(directory):
        split = measured(task, directory, source, device=device, seed=0)
        if write_only:
            runs = ended_runs(plan, directory)
        else:
            runs = make_runs(plan, directory, source=source, observe=observe)
        page = PaperWriter(task, plan, runs, split, directory).write()
    typer.echo(f"page: {page}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of runs.")],
) -> None:
    """Write tables, figures and one HTML page about the runs in a folder."""
    written = write_report(directory)
    console.print(written.table.to_rich(written.title, console))
    console.print(written.legend, style="dim", highlight=False)
    console.print(written.headline, style="bold", highlight=False)
    typer.echo(f"report: {written.page}")
