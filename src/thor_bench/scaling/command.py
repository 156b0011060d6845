"""``thor scale``: parses, measures or reads profiles, predicts, writes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from thor_bench.errors import BenchError
from thor_bench.scaling.check import check_table, network_lines, run_check
from thor_bench.scaling.measure import measure_profile, save_profile, saved_profile
from thor_bench.scaling.model import Assumptions, Profile
from thor_bench.scaling.networks import NETWORKS, NetworkChanges, find_network, parse_ranks
from thor_bench.scaling.published import paper_table
from thor_bench.scaling.report import predict, profile_table, step_table, write_prediction
from thor_bench.scaling.tasks import TASKS, Task, find_task
from thor_bench.training.ranks import open_device
from thor_bench.training.rundir import make_directory

DEFAULT_RANKS = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096"
_OF_THE_PAPER = "imagenet-resnet50"

_console = Console()


_RanksOption = Annotated[str, typer.Option(help="Numbers of ranks.")]
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
    workloads: Annotated[
        list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help=f"Of {', '.join(TASKS)}.")
    ] = None,
    *,
    network: Annotated[
        str, typer.Option(help=f"What connects the ranks: {', '.join(NETWORKS)}.")
    ] = "100GbE",
    topology: Annotated[
        str | None, typer.Option(help="ring, tree or hierarchical instead of the network's.")
    ] = None,
    latency_us: Annotated[float | None, typer.Option(help="Microseconds of a hop.")] = None,
    gbit: Annotated[float | None, typer.Option(help="Gb/s that a rank's link reaches.")] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="Ranks in a node.")] = None,
    ranks: _RanksOption = DEFAULT_RANKS,
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
    tasks = [find_task(name) for name in workloads or TASKS]
    changes = NetworkChanges(
        topology=topology, latency_us=latency_us, gbit=gbit, ranks_per_node=ranks_per_node
    )
    link, numbers = find_network(network, changes), parse_ranks(ranks)
    assumptions = Assumptions(interval=interval, overlap=overlap)
    if step_ms is not None and step_ms <= 0:
        raise BenchError(f"--step-ms {step_ms:g} must be > 0 milliseconds; leave it out")
    make_directory(out)
    profiles = [_profile(task, device, out, cycles, again=measure) for task in tasks]
    _print_profiles(profiles, out)
    stem_end = network if step_ms is None else f"{network}-{step_ms:g}ms"
    for profile in profiles:
        used = profile if step_ms is None else _of_speed(profile, step_ms)
        prediction = predict(used, link, numbers, assumptions)
        figure = write_prediction(prediction, out, f"{profile.workload}-{stem_end}")
        _console.print(step_table(prediction).to_rich(prediction.title, _console))
        typer.echo(f"figure: {figure.light}")
        if profile.workload == _OF_THE_PAPER:
            table = paper_table(profile, find_network("ascend"), assumptions)
            (out / "paper.md").write_text(table.to_markdown(), encoding="utf-8")
            _console.print(table.to_rich("The paper's Table 5 and this model", _console))
    if check:
        _check(out)


def _profile(task: Task, device: str, out: Path, cycles: int, *, again: bool) -> Profile:
    """Reads or measures a profile."""
    path = out / f"profile-{task.name}.json"
    known = None if again else saved_profile(path)
    if known is not None:
        return known
    found = measure_profile(task, open_device(device), cycles=cycles, tell=typer.echo)
    save_profile(found, path)
    return found


def _of_speed(profile: Profile, step_ms: float) -> Profile:
    """Returns the profile of a device whose forward and backward take so long."""
    return profile.times(1e-3 * step_ms / (profile.forward + profile.backward))


def _print_profiles(profiles: list[Profile], out: Path) -> None:
    table = profile_table(profiles)
    (out / "profiles.md").write_text(table.to_markdown(), encoding="utf-8")
    _console.print(table.to_rich("Measured on one device", _console))
    for line in dict.fromkeys(f"{profile.device}; {profile.note}" for profile in profiles):
        typer.echo(line)


def _check(out: Path) -> None:
    found = run_check(tell=typer.echo)
    table = check_table(found)
    (out / "check.md").write_text(table.to_markdown(), encoding="utf-8")
    _console.print(table.to_rich("Predicted and measured on this machine", _console))
    for line in network_lines(found):
        typer.echo(line)
