"""``thor league``: every optimizer with one setting on all tasks."""

from pathlib import Path
from typing import Annotated

import typer

from thor_bench.cli import options
from thor_bench.league.page import write_league
from thor_bench.league.plan import League
from thor_bench.league.running import LeagueRunner
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.tasks import find_task
from thor_bench.training.claim import claimed
from thor_bench.training.observers import Observer

_TASKS = (
    "digits,tabular,fashion,fashion-autoencoder,text-gpt,lstm,metamath,vit,depthwise,unet,vae,"
    "image-fit,pinn"
)
_OPTIMIZERS = "thor,sgd,adamw,schedule-free,muon,muon-polar,normuon,adamuon,soap,kron,splus"


def league(
    *,
    tasks: Annotated[str, typer.Option(help="Names of workloads.")] = _TASKS,
    optimizers: Annotated[str, typer.Option(help="Names of optimizers.")] = _OPTIMIZERS,
    seeds: Annotated[int, typer.Option(help="Seeds of each optimizer and task.")] = 3,
    search: Annotated[
        int, typer.Option(help="Factors of its rates that each is tried with; 1: its defaults.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the league.")] = Path("runs/league"),
    set_targets: Annotated[
        bool, typer.Option("--set-targets", help="Only print what tuned AdamW reaches.")
    ] = False,
    device: options.Device = "cpu",
    data_dir: options.DataDir = None,
    download: options.Download = False,
) -> None:
    """Race all optimizers over all tasks, each with one setting that nobody tuned to the task.

    Runs that are on disk already are not repeated: a stopped league goes on where it was.
    """
    asked = League(
        tasks=tuple(dict.fromkeys(options.names_in(tasks))),
        optimizers=options.present(options.names_in(optimizers)),
        seeds=seeds,
        search=search,
        device=device,
    )

    def observe(config: RunConfig, folder: Path, title: str) -> list[Observer]:
        return options.observers_of(find_task(config.workload), folder, title)

    source = DataSource(data_dir, download)
    runner = LeagueRunner(asked, out, source=source, observe=observe, tell=typer.echo)
    with claimed(out):
        if set_targets:
            runner.set_targets()
            return
        written = write_league(runner.run())
    options.console.print(written.table.to_rich("Standings", options.console))
    typer.echo(f"report: {written.page}")
