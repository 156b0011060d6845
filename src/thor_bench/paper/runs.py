"""The runs that the paper's tables and figures need, made where they are missing."""

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thor_bench.errors import BenchError, RunDivergedError, RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, find_recipe, plan_run
from thor_bench.optimizers.settings import to_values
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.records.reading import Run, read_run
from thor_bench.tasks import Task
from thor_bench.training.observers import Observer
from thor_bench.training.rundir import has_run, is_pending
from thor_bench.training.train import train

TABLE_2 = ("sgd", "paper-kfac", "ekfac", "paper-thor", "paper-thor-stop", "paper-thor-nt", "thor")
ABLATIONS = ("paper-thor-tr", "paper-thor-fre", "paper-thor-sp")

_POWERS = (2, 6)
_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Job:
    """A run that the paper needs."""

    label: str  # in a figure
    config: RunConfig
    folder: Path  # below the paper's folder


@dataclass(frozen=True)
class PaperRuns:
    """Every run of a paper."""

    compared: tuple[Job, ...]  # of Table 2 and of the ablations, seed by seed
    effects: tuple[Job, ...]  # of Figure 9
    command: str  # makes them

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All of them, in the order in which they are made."""
        return self.compared + self.effects


def plan_paper(
    workload: Task, *, seeds: int, options: RunOptions, target: float | None = None
) -> PaperRuns:
    """Settles every run; a target is one that was asked for in the place of the workload's own.

    Raises:
        BenchError: A value is not allowed.
    """
    if seeds < 1:
        raise BenchError(f"--seeds {seeds} must be at least 1; try --seeds 3")
    configs = [
        plan_run(workload, name, seed=seed, options=options)
        for seed in range(seeds)
        for name in (*TABLE_2, *ABLATIONS)
    ]
    compared = tuple(Job(one.optimizer, one, Path("runs") / one.name) for one in configs)
    command = ["thor", "paper", workload.name, "--seeds", str(seeds)]
    if target is not None:
        command += ["--target", f"{target:g}"]
    if options.epochs is not None:
        command += ["--epochs", f"{options.epochs:.15g}"]
    if options.evals_per_epoch != 1:
        command += ["--evals-per-epoch", str(options.evals_per_epoch)]
    if options.device != "cpu":
        command += ["--device", options.device]
    return PaperRuns(compared, _effects(workload, options), shlex.join(command))


def _effects(workload: Task, options: RunOptions) -> tuple[Job, ...]:
    """Returns the runs of Figure 9: the paper's schedule at several α_target and p."""
    usual = float(to_values(find_recipe(workload, "paper-thor").settings)["lr"] or 0.0)
    jobs = []
    for lr in (usual * scale for scale in _SCALES):
        for power in _POWERS:
            changes = [f"lr={lr:g}", "schedule=polynomial", f"lr_power={power}"]
            config = plan_run(workload, "paper-thor", seed=0, changes=changes, options=options)
            folder = Path("effects") / f"alpha-{lr:g}-p-{power}"
            jobs.append(Job(f"α = {lr:g}, p = {power}", config, folder))
    return tuple(jobs)


def make_runs(
    plan: PaperRuns,
    directory: Path,
    *,
    source: DataSource,
    observe: Callable[[Job, str], Sequence[Observer]],
) -> dict[Path, Run]:
    """Makes every run that is not on disk yet and reads them all.

    A run that diverges counts as a miss; the others go on. See ``ended_runs``.

    Args:
        plan: What is asked for.
        directory: Folder of the paper.
        source: Where data may be found.
        observe: ``(run, its number and the time left) -> observers``.

    Raises:
        BenchError: A folder holds another run, or a run cannot be made.
    """
    pending = [job for job in plan.jobs if is_pending(job.config, directory / job.folder)]
    made, begun = len(plan.jobs) - len(pending), time.monotonic()
    for number, job in enumerate(pending):
        told = f"[{made + number + 1}/{len(plan.jobs)}]"
        if number:  # the others at the pace so far
            left = (time.monotonic() - begun) / number * (len(pending) - number)
            told += f" ~{math.ceil(left / 60)} min left"
        folder, watching = directory / job.folder, observe(job, told)
        try:
            resume = has_run(folder)
            train(job.config, folder, source=source, observers=watching, resume=resume)
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
    folders = [
        job.folder for job in plan.jobs if not is_pending(job.config, directory / job.folder)
    ]
    if not folders:
        message = f"--out {directory} holds no run that has ended"
        raise BenchError(f"{message}; make them with: {plan.command} --out {directory}")
    return {folder: read_run(directory / folder) for folder in folders}
