"""Comparing optimizers: several seeds each, by time, steps and epochs to a target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.peer import Takes
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.optimizers.registry import find_optimizer, lacking
from thor_bench.optimizers.settings import Positive
from thor_bench.records.config import DataSource, RunConfig, command_line
from thor_bench.records.disk import keep, kept
from thor_bench.records.reading import Run, read_run
from thor_bench.tasks import Task, find_task
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending, make_directory
from thor_bench.training.train import train

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison asks for."""

    workload: str
    optimizers: tuple[str, ...]  # in the order of tables and figures
    seeds: int
    target: float | None  # value of the metric that is timed; None: what others reach
    runs: tuple[RunConfig, ...]  # seed by seed, so that a drift of the machine hits all alike
    command: str  # that makes the comparison
    to_target: bool = False  # whether a run ends there, before its horizon


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What a user may change about a comparison."""

    seeds: int = 3
    target: float | None = None  # None for the task's own
    to_target: bool = False
    horizons: Mapping[str, float] | None = None  # epochs by optimizer; the others keep theirs
    changes: Sequence[str] = ()  # optimizer.key=value
    run: RunOptions = field(default_factory=RunOptions)


def plan_comparison(
    workload: Task, optimizers: Sequence[str], options: CompareOptions
) -> Comparison:
    """Settles every run of a comparison.

    Raises:
        BenchError: A name or value is not allowed.
    """
    names = checked_names(optimizers)
    if options.seeds < 1:
        raise BenchError(f"--seeds {options.seeds} must be at least 1; try --seeds 3")
    changes = _changes_by_optimizer(names, options.changes)
    horizons = options.horizons or {}
    for name in horizons:
        _require_compared("--horizon", name, names)
    asked = {n: replace(options.run, epochs=horizons.get(n, options.run.epochs)) for n in names}
    runs = tuple(
        plan_run(workload, name, seed=seed, changes=changes[name], options=asked[name])
        for seed in range(options.seeds)
        for name in names
    )
    target = checked_target(workload, options.target)
    if target is None and options.to_target:
        message = f"--to-target: {workload.name} has no target"
        raise BenchError(f"{message}; give --target, or set one in its Task")
    command = command_line(
        "thor", "compare", workload.name,
        optimizers=names,
        seeds=options.seeds,
        target=options.target,
        to_target=options.to_target,
        horizon=horizons,
        **changed(options.run),
        set=list(options.changes),
    )  # fmt: skip
    return Comparison(
        workload=workload.name,
        optimizers=names,
        seeds=options.seeds,
        target=target,
        runs=runs,
        command=command,
        to_target=options.to_target,
    )


def changed(options: RunOptions) -> dict[str, object]:
    """Returns those options of a run that are not the default, for a command line."""
    usual = vars(RunOptions())
    return {name: value for name, value in vars(options).items() if value != usual[name]}


def checked_names(optimizers: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of optimizers, each once.

    Raises:
        BenchError: One is unknown, or there are none.
    """
    if not optimizers:
        raise BenchError("--optimizers is empty; name some, such as --optimizers thor,sgd,adamw")
    for name in optimizers:
        find_optimizer(name, argument="--optimizers")
    return tuple(dict.fromkeys(optimizers))


def require_rates(optimizers: Sequence[str]) -> None:
    """Checks that optimizers have what a study or a league searches.

    Raises:
        BenchError: One has no learning rate.
    """
    for name in optimizers:
        if find_optimizer(name).takes is not Takes.GRADIENTS:
            message = f"--optimizers {name} finds the length of its steps by itself"
            raise BenchError(f"{message}, so there is no rate to search; take thor compare for it")


def _require_compared(argument: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        message = f"{argument} names {name!r}, which is not compared; allowed: {', '.join(names)}"
        raise BenchError(f"{message}; add it to --optimizers or leave it out")


def _changes_by_optimizer(names: Sequence[str], changes: Sequence[str]) -> dict[str, list[str]]:
    """Sorts ``optimizer.key=value`` texts by optimizer."""
    sorted_changes: dict[str, list[str]] = {name: [] for name in names}
    for change in changes:
        name, dot, rest = change.partition(".")
        if not dot or "=" in name:
            message = f"--set {change!r} names no optimizer; write optimizer.key=value"
            raise BenchError(f"{message}, such as {names[0]}.lr=0.1")
        _require_compared("--set", name, names)
        sorted_changes[name].append(rest)
    return sorted_changes


def checked_target(workload: Task, target: float | None) -> float | None:
    """Returns a target that the metric allows; None takes the task's, which may have none.

    Raises:
        BenchError: The value is out of range, or a fraction in the place of a percentage.
    """
    metric = workload.metric
    if target is None:
        return workload.target
    low, high = metric.range
    if not low <= target <= high:
        message = f"--target {target} must be in {low:g} … {high:g} {metric.unit}"
        usual = f"{workload.target:g}" if workload.target is not None else "one in that range"
        raise BenchError(f"{message} ({metric.name}); try --target {usual}")
    if metric.unit == "%" and 0 < target <= 1:
        message = f"--target {target} is read as {target} %, not as a fraction"
        raise BenchError(f"{message}; did you mean --target {100 * target:g}?")
    return target


def parse_horizons(text: str | None) -> dict[str, float]:
    """Reads ``optimizer=epochs`` pairs, such as ``thor=3,sgd=6``.

    Raises:
        BenchError: A pair cannot be read.
    """
    horizons: dict[str, float] = {}
    for pair in filter(None, (text or "").split(",")):
        name, _, epochs = (part.strip() for part in pair.partition("="))
        try:
            horizons[name] = TypeAdapter(Positive).validate_python(epochs)
        except ValidationError as error:
            message = f"--horizon {pair!r} must be optimizer=epochs, epochs above 0"
            raise BenchError(f"{message}; write, for example, --horizon thor=3,sgd=6") from error
    return horizons


def run_comparison(
    comparison: Comparison,
    directory: Path,
    *,
    source: DataSource,
    observe: Callable[[RunConfig, Path, int], Sequence[Observer]],
) -> list[Run]:
    """Makes every run that is not on disk yet and reads them all.

    A run that diverges counts as a miss, and an optimizer that this installation lacks is left out;
    the others go on.

    Args:
        comparison: What is asked for.
        directory: Folder of the comparison; each run has a folder in it.
        source: Where data may be found.
        observe: ``(run, its folder, its number) -> observers`` for each run that is trained.

    Returns:
        The runs, in the order of the comparison.

    Raises:
        BenchError: A folder holds another run, or a run cannot be made.
    """
    runs = comparison.runs
    pending = {config.name for config in runs if is_pending(config, directory / config.name)}
    absent = _absent(comparison)
    make_directory(directory)
    keep(comparison, directory / COMPARISON_FILE)
    stop = _early_stop(comparison)
    made = []
    for number, config in enumerate(runs, start=1):
        folder = directory / config.name
        if config.name in pending:
            if config.optimizer in absent:
                continue
            watching, begun = observe(config, folder, number), has_run(folder)
            try:
                train(
                    config, folder, source=source, observers=watching, early_stop=stop, resume=begun
                )
            except RunDivergedError:
                pass  # on record as failed; the table counts the miss
            except RunInterruptedError as stopped:
                message = f"stopped and saved in run {number} of {len(runs)}"
                again = source.again(comparison.command, directory)
                raise RunInterruptedError(f"{message}; go on with: {again}") from stopped
        made.append(read_run(folder))
    return made


def _early_stop(comparison: Comparison) -> EarlyStop | None:
    if comparison.target is None or not comparison.to_target:
        return None
    return EarlyStop(find_task(comparison.workload).metric, comparison.target)


def _absent(comparison: Comparison) -> dict[str, str]:
    """What this installation lacks for some of the optimizers; not for all of them."""
    absent = lacking(comparison.optimizers)
    if len(absent) == len(comparison.optimizers):
        told = "; ".join(f"{name} {what}" for name, what in absent.items())
        raise BenchError(f"--optimizers names none that runs here ({told}); name another")
    return absent


def read_comparison(directory: Path) -> Comparison | None:
    """Reads what a folder's comparison asked for; None where there is none.

    Raises:
        BenchError: The file is broken.
    """
    advice = "repeat the thor compare that made it"
    return kept(Comparison, directory / COMPARISON_FILE, advice=advice)
