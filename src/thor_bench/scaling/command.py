"""``thor scale``: parses, measures or reads profiles, predicts, writes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from thor_bench.errors import BenchError
from thor_bench.records.disk import measured_once
from thor_bench.report.tables import TextTable
from thor_bench.scaling.check import check_table, network_line, run_check
from thor_bench.scaling.measure import measure_profile
from thor_bench.scaling.model import Assumptions, Network, Profile
from thor_bench.scaling.networks import NETWORKS, find_network, parse_ranks
from thor_bench.scaling.report import paper_table, predict, profile_table, step_table, write_steps
from thor_bench.scaling.scaled_models import MODELS, ScaledModel, find_model
from thor_bench.training.ranks import open_device
from thor_bench.training.rundir import make_directory

DEFAULT_RANKS = ",".join(str(2**power) for power in range(13))
_OF_THE_PAPER = "imagenet-resnet50"

_console = Console(markup=False, emoji=False)

_WorkloadsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help=f"Of {', '.join(MODELS)}.")
]
_NetworkOption = Annotated[
    str, typer.Option(help=f"What connects the ranks: {', '.join(NETWORKS)}.")
]
_TopologyOption = Annotated[
    str | None, typer.Option(help="ring, tree or hierarchical instead of the network's.")
]
_StepOption = Annotated[
    float | None, typer.Option(help="Assume a device whose forward and backward take so long.")
]
_MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Measure again what is on disk already.")
]
_CheckOption = Annotated[
    bool, typer.Option("--check", help="Train on 2 and 4 processes here and compare.")
]


def scale(
    workloads: _WorkloadsArgument = None,
    *,
    network: _NetworkOption = "100GbE",
    topology: _TopologyOption = None,
    latency_us: Annotated[float | None, typer.Option(help="Microseconds of a hop.")] = None,
    gbit: Annotated[float | None, typer.Option(help="Gb/s that a rank's link reaches.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Ranks in a node.")] = None,
    ranks: Annotated[str, typer.Option(help="Numbers of ranks.")] = DEFAULT_RANKS,
    interval: Annotated[float, typer.Option(help="Steps between two refreshes.")] = 20.0,
    overlap: Annotated[float, typer.Option(help="Share of backward that hides messages.")] = 1.0,
    step_ms: _StepOption = None,
    device: Annotated[str, typer.Option(help="torch device that is measured.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of profiles and results.")] = Path("runs/scale"),
    measure: _MeasureOption = False,
    cycles: Annotated[int, typer.Option(min=1, help="Refreshes that a measurement takes.")] = 2,
    check: _CheckOption = False,
) -> None:
    """Predict step time and scaling efficiency on many ranks from one device's profile."""
    tasks = [find_model(name) for name in workloads or MODELS]
    link = find_network(
        network, topology=topology, latency_us=latency_us, gbit=gbit, node_size=ranks_per_node
    )
    numbers, assumptions = parse_ranks(ranks), Assumptions(interval=interval, overlap=overlap)
    if step_ms is not None and not 0 < step_ms < math.inf:
        raise BenchError(f"--step-ms {step_ms:g} must be > 0 milliseconds; leave it out")
    make_directory(out)
    profiles = [_profile(task, device, out, cycles, again=measure) for task in tasks]
    _show(profile_table(profiles), "Measured on one device", out / "profiles.md")
    for line in dict.fromkeys(f"{profile.device}; {profile.note}" for profile in profiles):
        typer.echo(line)
    for profile in profiles:
        stem = f"{profile.workload}-{network}"
        if step_ms is None:
            _predict(profile, link, numbers, assumptions, out / stem)
        else:
            used = profile.times(1e-3 * step_ms / (profile.forward + profile.backward))
            _predict(used, link, numbers, assumptions, out / f"{stem}-{step_ms:g}ms")
        if profile.workload == _OF_THE_PAPER:
            table = paper_table(profile, find_network("ascend"), assumptions)
            _show(table, "The paper's Table 5 and this model", out / "paper.md")
    if check:
        _check(out)


def _profile(task: ScaledModel, device: str, out: Path, cycles: int, *, again: bool) -> Profile:
    """Reads or measures a profile."""

    def measure() -> Profile:
        return measure_profile(task, open_device(device), cycles=cycles, tell=typer.echo)

    path, remedy = out / f"profile-{task.name}.json", "measure again with --measure"
    return measured_once(path, Profile, measure, again=again, remedy=remedy)


def _predict(
    profile: Profile, network: Network, ranks: Sequence[int], assumptions: Assumptions, stem: Path
) -> None:
    steps = predict(profile, network, ranks, assumptions)
    title = f"{profile.workload}, {profile.batch} samples a rank, {network.name}"
    figure = write_steps(steps, title, stem)
    _console.print(step_table(steps).to_rich(title, _console))
    typer.echo(f"figure: {figure.light}")


def _check(out: Path) -> None:
    profile, runs = run_check(tell=typer.echo)
    table = check_table(profile, runs)
    _show(table, "Predicted and measured on this machine", out / "check.md")
    for run in runs:
        typer.echo(network_line(run))


def _show(table: TextTable, title: str, path: Path) -> None:
    path.write_text(table.to_markdown(), encoding="utf-8")
    _console.print(table.to_rich(title, _console))
