"""The runs that the paper's tables and figures need, made where they are missing."""

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, find_recipe, plan_run
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import Run, read_run
from thor_bench.tasks import Workload
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending
from thor_bench.training.train import train

TABLE_2 = ("sgd", "paper-kfac", "ekfac", "paper-thor", "paper-thor-stop", "paper-thor-nt", "thor")
ABLATIONS = ("paper-thor-tr", "paper-thor-fre", "paper-thor-sp")

_POWERS = (2, 6)
_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Job:
    """A run that the paper needs.

    Attributes:
        label: Its name in a figure.
        config: What it does.
        folder: Where it is kept, below the paper's folder.
    """

    label: str
    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class PaperRuns:
    """Every run of a paper.

    Attributes:
        seeds: Runs of each optimizer of Table 2 and of the ablations.
        compared: The runs of Table 2 and of the ablations, seed by seed.
        effects: The runs of Figure 9.
        command: Command line that makes them.
    """

    seeds: int
    compared: tuple[Job, ...]
    effects: tuple[Job, ...]
    command: str

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All of them, in the order in which they are made."""
        return self.compared + self.effects


def plan_paper(
    workload: Workload, *, seeds: int, options: RunOptions, target: float | None = None
) -> PaperRuns:
    """Settles every run.

    Args:
        workload: What is trained.
        seeds: Seeds of each optimizer.
        options: What differs from the recipes.
        target: What was asked for in the place of the workload's own target.

    Raises:
        BenchError: A value is not allowed.
    """
    if seeds < 1:
        raise BenchError(f"--seeds {seeds} must be at least 1; try --seeds 3")
    compared = [
        Job(name, config, Path("runs") / config.name)
        for seed in range(seeds)
        for name in (*TABLE_2, *ABLATIONS)
        for config in [plan_run(workload, name, seed=seed, options=options)]
    ]
    command = ["thor", "paper", workload.name, "--seeds", str(seeds)]
    if target is not None:
        command += ["--target", f"{target:g}"]
    if options.epochs is not None:
        command += ["--epochs", f"{options.epochs:.15g}"]
    if options.evals_per_epoch != 1:
        command += ["--evals-per-epoch", str(options.evals_per_epoch)]
    if options.device != "cpu":
        command += ["--device", options.device]
    effects = tuple(_effects(workload, options))
    return PaperRuns(seeds, tuple(compared), effects, shlex.join(command))


def _effects(workload: Workload, options: RunOptions) -> list[Job]:
    """Returns the runs of Figure 9: the paper's schedule at several α_target and p."""
    usual = find_recipe(workload, "paper-thor").settings.lr
    jobs = []
    for scale in _SCALES:
        for power in _POWERS:
            lr = usual * scale
            changes = [f"lr={lr:g}", "schedule=polynomial", f"lr_power={power}"]
            config = plan_run(workload, "paper-thor", seed=0, changes=changes, options=options)
            folder = Path("effects") / f"alpha-{lr:g}-p-{power}"
            jobs.append(Job(f"α = {lr:g}, p = {power}", config, folder))
    return jobs


def make_runs(
    plan: PaperRuns,
    directory: Path,
    *,
    source: DataSource,
    observe: Callable[[Job, str], Sequence[Observer]],
) -> dict[Path, Run]:
    """Makes every run that is not on disk yet and reads them all.

    A run that diverges counts as a miss; the others go on.

    Args:
        plan: What is asked for.
        directory: Folder of the paper.
        source: Where data may be found.
        observe: ``(run, its number and the time left) -> observers``.

    Returns:
        The runs by their folder below ``directory``.

    Raises:
        BenchError: A folder holds another run, or a run cannot be made.
    """
    pending = [job for job in plan.jobs if is_pending(job.config, directory / job.folder)]
    begun = time.monotonic()
    for number, job in enumerate(pending):
        told = _progress(len(plan.jobs) - len(pending), number, len(pending), begun)
        try:
            train(
                job.config,
                directory / job.folder,
                source=source,
                observers=observe(job, told),
                resume=has_run(directory / job.folder),
            )
        except RunInterruptedError as stopped:
            again = source.again(plan.command, directory)
            message = f"stopped and saved in run {number + 1} of {len(pending)}"
            raise RunInterruptedError(f"{message}; go on with: {again}") from stopped
        except RunDivergedError:
            continue  # on record as failed; the tables count the miss
    return ended_runs(plan, directory)


def ended_runs(plan: PaperRuns, directory: Path) -> dict[Path, Run]:
    """Reads the runs on disk that have ended, by their folder below ``directory``.

    Raises:
        BenchError: None has, or a folder holds another run.
    """
    ended = [job.folder for job in plan.jobs if not is_pending(job.config, directory / job.folder)]
    if not ended:
        message = f"--out {directory} holds no run that has ended"
        raise BenchError(f"{message}; make them with: {plan.command} --out {directory}")
    return {folder: read_run(directory / folder) for folder in ended}


def _progress(made: int, number: int, pending: int, begun: float) -> str:
    """Returns which run this is, and how long the others will take at the pace so far."""
    text = f"[{made + number + 1}/{made + pending}]"
    if not number:
        return text
    left = (time.monotonic() - begun) / number * (pending - number)
    return f"{text} ~{math.ceil(left / 60)} min left"
