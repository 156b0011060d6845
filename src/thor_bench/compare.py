"""Comparing optimizers: several seeds each, by time, steps and epochs to a target."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError, reason
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.optimizers.registry import find_optimizer, lacking
from thor_bench.optimizers.settings import Positive
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.disk import written_whole
from thor_bench.records.reading import Run, read_run
from thor_bench.tasks import Workload, find_workload
from thor_bench.training.early_stop import EarlyStop
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending, make_directory
from thor_bench.training.train import train

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison asks for.

    Attributes:
        workload: Name of the workload.
        optimizers: Names, in the order of tables and figures.
        seeds: Number of seeds; runs use seeds 0 … seeds - 1.
        target: Value of the workload's metric that is timed.
        to_target: Whether a run ends there, before its horizon.
        runs: Every run, seed by seed, so that a drift of the machine hits all optimizers alike.
        command: Command line that makes the comparison.
    """

    workload: str
    optimizers: tuple[str, ...]
    seeds: int
    target: float
    runs: tuple[RunConfig, ...]
    command: str
    to_target: bool = False


_ADAPTER = TypeAdapter(Comparison)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What a user may change about a comparison.

    Attributes:
        seeds: Number of seeds.
        target: Value to time, or None for the workload's own.
        to_target: Whether each run ends at the target.
        horizons: Epochs by optimizer; the others keep theirs.
        changes: ``optimizer.key=value`` texts.
        run: Options of every run.
    """

    seeds: int = 3
    target: float | None = None
    to_target: bool = False
    horizons: Mapping[str, float] | None = None
    changes: Sequence[str] = ()
    run: RunOptions = field(default_factory=RunOptions)


def plan_comparison(
    workload: Workload, optimizers: Sequence[str], options: CompareOptions
) -> Comparison:
    """Settles every run of a comparison.

    Args:
        workload: What is trained.
        optimizers: Names of the optimizers.
        options: What differs from the recipes.

    Raises:
        BenchError: A name or value is not allowed.
    """
    names = tuple(dict.fromkeys(optimizers))
    if not names:
        raise BenchError("--optimizers is empty; name some, such as --optimizers thor,sgd,adamw")
    for name in names:
        find_optimizer(name, argument="--optimizers")
    if options.seeds < 1:
        raise BenchError(f"--seeds {options.seeds} must be at least 1; try --seeds 3")
    changes = _changes_by_optimizer(names, options.changes)
    horizons = options.horizons or {}
    for name in horizons:
        _require_compared("--horizon", name, names)
    configs = {
        name: _plan(workload, name, changes[name], horizons.get(name), options.run)
        for name in names
    }
    runs = tuple(configs[name](seed) for seed in range(options.seeds) for name in names)
    return Comparison(
        workload=workload.name,
        optimizers=names,
        seeds=options.seeds,
        target=checked_target(workload, options.target),
        runs=runs,
        command=_command(workload.name, names, options),
        to_target=options.to_target,
    )


def _plan(
    workload: Workload, name: str, changes: Sequence[str], horizon: float | None, run: RunOptions
) -> Callable[[int], RunConfig]:
    options = RunOptions(
        epochs=run.epochs if horizon is None else horizon,
        batch_size=run.batch_size,
        evals_per_epoch=run.evals_per_epoch,
        device=run.device,
        preset=run.preset,
    )
    return lambda seed: plan_run(workload, name, seed=seed, changes=changes, options=options)


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


def checked_target(workload: Workload, target: float | None) -> float:
    """Returns a target that the metric allows; None takes the workload's.

    Raises:
        BenchError: The value is out of range, or a fraction in the place of a percentage.
    """
    metric = workload.metric
    if target is None:
        return workload.target
    if not metric.low <= target <= metric.high:
        message = f"--target {target} must be in {metric.low:g} … {metric.high:g} {metric.unit}"
        raise BenchError(f"{message} ({metric.name}); try --target {workload.target:g}")
    if metric.unit == "%" and 0 < target <= 1:
        message = f"--target {target} is read as {target} %, not as a fraction"
        raise BenchError(f"{message}; did you mean --target {100 * target:g}?")
    return target


def _command(workload: str, names: Sequence[str], options: CompareOptions) -> str:
    """Returns the command line that asks for this comparison."""
    words = ["thor", "compare", workload, "--optimizers", ",".join(names)]
    words += ["--seeds", str(options.seeds)]
    if options.target is not None:
        words += ["--target", f"{options.target:g}"]
    if options.to_target:
        words.append("--to-target")
    if options.run.epochs is not None:
        words += ["--epochs", f"{options.run.epochs:.15g}"]
    if options.horizons:
        words += [
            "--horizon",
            ",".join(f"{name}={epochs:.15g}" for name, epochs in options.horizons.items()),
        ]
    if options.run.batch_size is not None:
        words += ["--batch-size", str(options.run.batch_size)]
    if options.run.evals_per_epoch != 1:
        words += ["--evals-per-epoch", str(options.run.evals_per_epoch)]
    if options.run.preset is not None:
        words += ["--preset", options.run.preset]
    if options.run.device != "cpu":
        words += ["--device", options.run.device]
    for change in options.changes:
        words += ["--set", change]
    return shlex.join(words)


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
    pending = [config for config in comparison.runs if is_pending(config, directory / config.name)]
    absent = _absent(comparison)
    left_out = [config for config in pending if config.optimizer in absent]
    pending = [config for config in pending if config not in left_out]
    make_directory(directory)
    metric = find_workload(comparison.workload).metric
    stop = EarlyStop(metric, comparison.target) if comparison.to_target else None
    with written_whole(directory / COMPARISON_FILE) as file:
        file.write(_ADAPTER.dump_json(comparison, indent=1) + b"\n")
    for config in pending:
        folder = directory / config.name
        number = comparison.runs.index(config) + 1
        try:
            watching, begun = observe(config, folder, number), has_run(folder)
            train(config, folder, source=source, observers=watching, early_stop=stop, resume=begun)
        except RunInterruptedError as stopped:
            message = f"stopped and saved in run {number} of {len(comparison.runs)}"
            again = source.again(comparison.command, directory)
            raise RunInterruptedError(f"{message}; go on with: {again}") from stopped
        except RunDivergedError:
            continue  # on record as failed; the table counts the miss
    made = (config for config in comparison.runs if config not in left_out)
    return [read_run(directory / config.name) for config in made]


def _absent(comparison: Comparison) -> dict[str, str]:
    """What this installation lacks for some of the optimizers; not for all of them."""
    absent = lacking(comparison.optimizers)
    if len(absent) == len(comparison.optimizers):
        told = "; ".join(f"{name} {what}" for name, what in absent.items())
        raise BenchError(f"--optimizers names none that runs here ({told}); name another")
    return absent


def read_comparison(directory: Path) -> Comparison | None:
    """Reads what a folder's comparison asked for, or returns None where there is none.

    Raises:
        BenchError: The file is broken.
    """
    path = directory / COMPARISON_FILE
    if not path.exists():
        return None
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{path} cannot be read ({reason(error)[:120]})"
        raise BenchError(f"{message}; repeat the thor compare that made it") from error
