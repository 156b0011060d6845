"""``thor train``: one run, begun or gone on with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from thor_bench.cli.arguments import (
    BatchOption,
    DataDirOption,
    DeviceOption,
    DownloadOption,
    EpochsOption,
    EvaluationsOption,
    PresetOption,
    SetOption,
    WorkersOption,
    WorkloadArgument,
    observers_of,
)
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import stored_config
from thor_bench.tasks import find_workload
from thor_bench.training.ranks import open_ranks, speaks
from thor_bench.training.resuming import resumed_run
from thor_bench.training.train import train as train_run

# Parameters that are fields of a run.
_FIELDS = ("workload", "optimizer", "epochs", "seed", "batch_size", "evals_per_epoch", "device")


def train(
    context: typer.Context,
    workload: WorkloadArgument = "digits",
    *,
    optimizer: Annotated[
        str, typer.Option(help="Name of the optimizer, and so of its recipe (thor optimizers).")
    ] = "thor",
    changes: SetOption = None,
    epochs: EpochsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, augmentation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the stopped run in --out; what is left out is as it was."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the folder.")
    ] = False,
    evals_per_epoch: EvaluationsOption = 1,
    batch_size: BatchOption = None,
    device: DeviceOption = "cpu",
    data_dir: DataDirOption = None,
    download: DownloadOption = False,
    preset: PresetOption = None,
    workers: WorkersOption = None,
) -> None:
    """Train one workload with one optimizer, under torchrun on several processes."""
    task = find_workload(workload)
    directory = out or Path("runs") / workload / f"{optimizer}-seed{seed}"
    stored = stored_config(directory) if resume else None
    if stored is None:
        options = RunOptions(
            epochs=epochs,
            batch_size=batch_size,
            evals_per_epoch=evals_per_epoch,
            device=device,
            preset=preset,
        )
        config = plan_run(task, optimizer, seed=seed, changes=changes or (), options=options)
    else:
        config = resumed_run(stored, _said(context), changes=changes or (), preset=preset)
    _run(
        config,
        directory,
        DataSource(data_dir, download, workers),
        resume=resume,
        overwrite=overwrite,
    )


def _said(context: typer.Context) -> dict[str, Any]:
    """Returns the fields of the run that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in _FIELDS}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name != "DEFAULT"
    }


def _run(
    config: RunConfig, directory: Path, source: DataSource, *, resume: bool, overwrite: bool
) -> None:
    with open_ranks(config.device) as ranks:
        config = ranks.from_first(lambda: config)  # others may not see the folder
        train_run(
            config,
            directory,
            source=source,
            observers=observers_of(find_workload(config.workload), directory, config.name),
            resume=resume,
            overwrite=overwrite,
            ranks=ranks,
        )
    if speaks():
        typer.echo(f"records in {directory}; see them with: thor report {directory}")
