"""``thor train``: one run, begun or gone on with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from thor_bench.cli import options
from thor_bench.errors import BenchError
from thor_bench.optimizers.recipes import RunOptions, find_recipe, plan_run
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import from_values, override, to_values
from thor_bench.records.config import DataSource, RunConfig, command_line
from thor_bench.records.reading import stored_config
from thor_bench.tasks import find_task
from thor_bench.training.ranks import open_ranks, speaks
from thor_bench.training.train import train as train_run

# Parameters that are fields of a run.
_FIELDS = ("workload", "optimizer", "epochs", "seed", "batch_size", "evals_per_epoch", "device")


def train(
    context: typer.Context,
    workload: options.TaskName = "digits",
    *,
    optimizer: Annotated[
        str, typer.Option(help="Name of the optimizer, and so of its recipe (thor optimizers).")
    ] = "thor",
    changes: options.Set = None,
    epochs: options.Epochs = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, augmentation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    evals_per_epoch: options.Evaluations = 1,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    preset: options.Preset = None,
    workers: options.Workers = None,
) -> None:
    """Train one task with one optimizer, under torchrun on several processes."""
    task = find_task(workload)
    directory = out or Path("runs") / task.label / f"{optimizer}-seed{seed}"
    if resume and overwrite:
        message = "--resume goes on with the run in --out, --overwrite replaces it"
        raise BenchError(f"{message}; leave one of them out")
    stored = stored_config(directory) if resume else None
    if stored is None:
        run = RunOptions(
            epochs=epochs,
            batch_size=batch_size,
            evals_per_epoch=evals_per_epoch,
            device=device,
            preset=preset,
        )
        config = plan_run(task, optimizer, seed=seed, changes=changes or (), options=run)
    else:
        config = _resumed(stored, _said(context), changes or (), preset)
        config = replace(config, content=task.origin.content if task.origin else None)
    options.told(task)
    source = DataSource(data_dir, download, workers)
    _run(config, directory, source, resume=resume, overwrite=overwrite)


def _run(
    config: RunConfig, directory: Path, source: DataSource, *, resume: bool, overwrite: bool
) -> None:
    with open_ranks(config.device) as ranks:
        config = ranks.from_first(lambda: config)  # others may not see the folder
        train_run(
            config,
            directory,
            source=source,
            observers=options.observers_of(find_task(config.workload), directory, config.name),
            resume=resume,
            overwrite=overwrite,
            ranks=ranks,
        )
    if speaks():
        told = command_line("thor", "report", str(directory))
        typer.echo(f"records in {directory}; see them with: {told}")


def _said(context: typer.Context) -> dict[str, Any]:
    """Returns the fields of the run that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in _FIELDS}
    return {
        name: context.params[name]
        for name, source in sources.items()
        if source is not None and source.name != "DEFAULT"
    }


def _resumed(
    stored: RunConfig, said: Mapping[str, Any], changes: Sequence[str], preset: str | None
) -> RunConfig:
    """Returns the run that is asked for; what is not said again is as its record has it."""
    config = replace(stored, **said)
    other = (config.workload, config.optimizer) != (stored.workload, stored.optimizer)
    if other or not (changes or preset):
        return config
    if preset is None:
        kind = type(find_optimizer(stored.optimizer).settings)
        base: Any = from_values(kind, dict(stored.settings))
    else:
        base = find_recipe(find_task(stored.workload), stored.optimizer, preset).settings
    return replace(config, settings=to_values(override(base, changes)))
