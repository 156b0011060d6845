"""``thor tune``: the same search for several optimizers, then their race to a target."""

from pathlib import Path
from typing import Annotated

import typer

from thor_bench.cli import options
from thor_bench.compare import checked_names
from thor_bench.optimizers.recipes import RunOptions
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.tasks import find_task
from thor_bench.training.claim import claimed
from thor_bench.training.observers import Observer
from thor_bench.tune.study import Study, forget_study
from thor_bench.tune.study_report import StudyReport, write_study
from thor_bench.tune.tuning import StudyRunner


def tune(
    workload: options.TaskName = "digits",
    *,
    optimizers: options.Optimizers = "thor,sgd,adamw,muon",
    trials: Annotated[int, typer.Option(help="Trials of each optimizer.")] = 16,
    finalists: options.Finalists = 1,
    seeds: Annotated[int, typer.Option(help="Fresh seeds of each winner.")] = 5,
    target: Annotated[
        float | None,
        typer.Option(help="Value to time; without it the best first-order optimizer sets it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("runs/tune"),
    search_seed: Annotated[int, typer.Option(min=0, help="Seed of the points.")] = 0,
    evals_per_epoch: options.Evaluations = 2,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    workers: options.Workers = None,
    overwrite: options.OverwriteAll = False,
) -> None:
    """Tune several optimizers alike, and compare the winners by time to a target.

    Runs that are on disk already are not repeated: a stopped study goes on where it was.
    """
    task = find_task(workload)
    names = checked_names(options.names_in(optimizers))
    study = Study(
        workload=workload,
        optimizers=options.present(names),
        trials=trials,
        finalists=finalists,
        seeds=seeds,
        target=target,
        search_seed=search_seed,
        run=RunOptions(batch_size=batch_size, evals_per_epoch=evals_per_epoch, device=device),
    )

    def observe(_config: RunConfig, folder: Path, title: str) -> list[Observer]:
        return options.observers_of(task, folder, title)

    directory = out / options.told(task).label
    source = DataSource(data_dir, download, workers)
    with claimed(directory):
        if overwrite:
            forget_study(directory)
        runner = StudyRunner(study, directory, source=source, observe=observe, tell=typer.echo)
        _show(write_study(runner.run()))


def _show(written: StudyReport) -> None:
    options.console.print(written.table.to_rich(written.title, options.console))
    typer.echo(f"report: {written.page}")
    typer.echo(f"figure: {written.figure.light}")
    if written.profile is not None:
        typer.echo(f"performance profile: {written.profile.light}")
