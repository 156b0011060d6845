"""A study on disk: what was asked for, and every trial that it will make."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from thor_bench.compare import checked_target
from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.recipes import RunOptions
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import RunConfig
from thor_bench.records.disk import written_whole
from thor_bench.tasks import Workload
from thor_bench.training import rundir
from thor_bench.tune.search import TRIAL_SEED, plan_trials

STUDY_FILE = "study.json"
TRIALS_FOLDER = "trials"
WINNERS_FOLDER = "winners"
REPEATS = (TRIAL_SEED + 1, TRIAL_SEED + 2)  # seeds that the finalists run again with
FIRST_FRESH_SEED = REPEATS[-1] + 1


@dataclass(frozen=True)
class Trial:
    """One run of the search.

    Attributes:
        number: Its number among its optimizer's trials, from 0 (the recipe).
        config: The run.
    """

    number: int
    config: RunConfig

    @property
    def folder(self) -> str:
        """Folder of the run, within that of the study."""
        folder = f"{TRIALS_FOLDER}/{self.config.optimizer}-{self.number:03d}"
        seed = self.config.seed
        return folder if seed == TRIAL_SEED else f"{folder}-seed{seed}"

    def repeats(self) -> tuple["Trial", ...]:
        """Returns the same settings under the seeds that finalists run again with."""
        return tuple(replace(self, config=replace(self.config, seed=seed)) for seed in REPEATS)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study asks for.

    Attributes:
        workload: Name of the workload.
        optimizers: Names, in the order of tables and figures.
        trials: Every trial, number by number, so that a drift of the machine hits all optimizers
            alike.
        finalists: Trials of each optimizer, the best ones, that run again with further seeds; the
            winner is the best of them over all its seeds.
        seeds: Fresh seeds that each winner is run with.
        target: Value of the metric that is timed; None takes what the best tuned first-order
            optimizer reaches with every fresh seed.
        command: Command line that makes the study.
    """

    workload: str
    optimizers: tuple[str, ...]
    trials: tuple[Trial, ...]
    finalists: int = 1
    seeds: int
    target: float | None
    command: str

    def differences(self, other: "Study") -> list[str]:
        """Names what this study asks for otherwise than another."""
        names = [one.name for one in fields(self) if one.name != "command"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


_ADAPTER = TypeAdapter(Study)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What a user may change about a study.

    Attributes:
        trials: Trials of each optimizer.
        finalists: Trials of each that run again; 1 takes the best on one seed.
        seeds: Fresh seeds of each winner.
        target: Value to time, or None.
        search_seed: Seed of the quasi-random points.
        run: Options of every run.
    """

    trials: int = 16
    finalists: int = 1
    seeds: int = 5
    target: float | None = None
    search_seed: int = 0
    run: RunOptions = field(default_factory=RunOptions)


def plan_study(workload: Workload, optimizers: Sequence[str], options: StudyOptions) -> Study:
    """Settles every trial of a study.

    Args:
        workload: What is trained.
        optimizers: Names of the optimizers.
        options: The budget.

    Raises:
        BenchError: A name or value is not allowed, or nothing can set the target.
    """
    names = tuple(dict.fromkeys(optimizers))
    if not names:
        raise BenchError("--optimizers is empty; name some, such as --optimizers thor,sgd,adamw")
    specs = [find_optimizer(name, argument="--optimizers") for name in names]
    if options.seeds < 1:
        raise BenchError(f"--seeds {options.seeds} must be at least 1; try --seeds 5")
    if not 1 <= options.finalists <= max(options.trials, 1):
        allowed = f"1 … {options.trials} (--trials)"
        raise BenchError(f"--finalists {options.finalists} must be in {allowed}; try --finalists 1")
    if options.target is None and not any(spec.first_order for spec in specs):
        message = "--optimizers names no first-order optimizer to set the target"
        raise BenchError(f"{message}; add sgd or adamw, or give --target")
    trials = {
        name: plan_trials(
            workload, name, trials=options.trials, seed=options.search_seed, options=options.run
        )
        for name in names
    }
    target = None if options.target is None else checked_target(workload, options.target)
    return Study(
        workload=workload.name,
        optimizers=names,
        trials=tuple(
            Trial(number, trials[name][number])
            for number in range(options.trials)
            for name in names
        ),
        finalists=options.finalists,
        seeds=options.seeds,
        target=target,
        command=_command(workload.name, names, options),
    )


def _command(workload: str, names: Sequence[str], options: StudyOptions) -> str:
    """Returns the command line that asks for this study, but for its folder."""
    words = ["thor", "tune", workload, "--optimizers", ",".join(names)]
    words += ["--trials", str(options.trials), "--seeds", str(options.seeds)]
    if options.finalists > 1:
        words += ["--finalists", str(options.finalists)]
    if options.target is not None:
        words += ["--target", f"{options.target:g}"]
    if options.search_seed:
        words += ["--search-seed", str(options.search_seed)]
    words += ["--evals-per-epoch", str(options.run.evals_per_epoch)]
    if options.run.batch_size is not None:
        words += ["--batch-size", str(options.run.batch_size)]
    if options.run.device != "cpu":
        words += ["--device", options.run.device]
    return shlex.join(words)


def open_study(study: Study, directory: Path) -> None:
    """Writes a study into its folder, or finds it there.

    Raises:
        BenchError: The folder holds another study, or cannot be written.
    """
    rundir.make_directory(directory)
    stored = read_study(directory)
    if stored is not None:
        if differences := study.differences(stored):
            message = f"--out {directory} holds a study with other {', '.join(differences)}"
            raise BenchError(f"{message} (made by {stored.command}); name another --out")
        return
    with written_whole(directory / STUDY_FILE) as file:
        file.write(_ADAPTER.dump_json(study, indent=1) + b"\n")


def read_study(directory: Path) -> Study | None:
    """Reads the study in a folder, or returns None where there is none.

    Raises:
        BenchError: The file is broken.
    """
    path = directory / STUDY_FILE
    if not path.exists():
        return None
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{path} cannot be read ({reason(error)[:120]})"
        raise BenchError(f"{message}; name another --out") from error
