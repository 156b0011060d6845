"""What a study asks for, and the folder that holds it."""

from dataclasses import dataclass, field
from pathlib import Path

from thor_bench.compare import changed, checked_names, checked_target, require_rates
from thor_bench.errors import BenchError
from thor_bench.optimizers.recipes import RunOptions
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.records.config import command_line
from thor_bench.records.disk import keep, kept
from thor_bench.tasks import find_task
from thor_bench.training import rundir

STUDY_FILE = "study.json"
JOURNAL_FILE = "trials.log"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study asks for.

    Raises:
        BenchError: A name or value is not allowed, or nothing can set the target.
    """

    workload: str
    optimizers: tuple[str, ...]  # in the order of tables and figures
    trials: int = 16  # of each optimizer
    finalists: int = 1  # best trials of each that run with further seeds before one wins
    seeds: int = 5  # fresh ones that each winner is run with
    target: float | None = None  # None: what the best first-order optimizer reaches with each seed
    search_seed: int = 0  # of the quasi-random points
    run: RunOptions = field(default_factory=RunOptions)  # of every run; the horizon is searched

    def __post_init__(self) -> None:
        require_rates(checked_names(self.optimizers))
        if self.trials < 1:
            raise BenchError(f"--trials {self.trials} must be at least 1; try --trials 8")
        if self.seeds < 1:
            raise BenchError(f"--seeds {self.seeds} must be at least 1; try --seeds 5")
        if not 1 <= self.finalists <= self.trials:
            allowed = f"1 … {self.trials} (--trials)"
            message = f"--finalists {self.finalists} must be in {allowed}"
            raise BenchError(f"{message}; try --finalists 1")
        if self.target is not None:
            checked_target(find_task(self.workload), self.target)
        elif not self.first_order:
            message = "--optimizers names no first-order optimizer to set the target"
            raise BenchError(f"{message}; add sgd or adamw, or give --target")

    @property
    def first_order(self) -> tuple[str, ...]:
        """The optimizers that may set the target, and that others are compared with."""
        return tuple(name for name in self.optimizers if find_optimizer(name).first_order)

    @property
    def command(self) -> str:
        """The command line that asks for this study, but for its folder."""
        return command_line(
            "thor", "tune", self.workload,
            optimizers=self.optimizers,
            trials=self.trials,
            seeds=self.seeds,
            finalists=None if self.finalists == 1 else self.finalists,
            target=self.target,
            search_seed=self.search_seed or None,
            **{"evals_per_epoch": self.run.evals_per_epoch, **changed(self.run)},
        )  # fmt: skip


def open_study(study: Study, directory: Path) -> None:
    """Writes a study into its folder, or finds it there.

    Raises:
        BenchError: The folder holds another study, or cannot be written.
    """
    rundir.make_directory(directory)
    path = directory / STUDY_FILE
    stored = kept(Study, path, advice="begin anew with --overwrite, or name another --out")
    if stored is None:
        keep(study, path)
    elif stored != study:
        message = f"--out {directory} holds another study, made by {stored.command}"
        raise BenchError(f"{message}; begin anew with --overwrite, or name another --out")


def forget_study(directory: Path) -> None:
    """Removes the study of a folder, its trials and its runs; tables and figures stay."""
    rundir.forget_runs(directory)
    for name in (STUDY_FILE, JOURNAL_FILE):
        (directory / name).unlink(missing_ok=True)
