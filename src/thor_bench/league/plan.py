"""What a league asks for: tasks, optimizers, and one setting of each for all tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from thor_bench.compare import Comparison, checked_names, require_rates
from thor_bench.errors import BenchError
from thor_bench.league.targets import TARGETS
from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.config import RunConfig, command_line
from thor_bench.tasks import find_task

SEARCH_SEED = 1000  # of the runs that choose a setting; no other run has it
_EVALUATIONS = 20  # in a run, about: the resolution of a time
_WARMUP = "warmup=0.05"  # then linear to zero, but for a rule whose schedule is constant
_RATES = ("lr", "rest_lr")  # that a factor multiplies


@dataclass(frozen=True, kw_only=True)
class League:
    """What a league asks for.

    Raises:
        BenchError: A name or value is not allowed.
    """

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    seeds: int = 3
    search: int = 1  # factors of the rates that each optimizer is tried with, on all tasks
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_rates(checked_names(self.optimizers))
        if not self.tasks:
            raise BenchError("--tasks is empty; name some, such as --tasks digits,lstm")
        labels: dict[str, str] = {}
        for task in self.tasks:
            label = find_task(task, argument="--tasks").label
            if labels.setdefault(label, task) != task:
                message = f"--tasks {labels[label]} and {task} would share a folder, {label}"
                raise BenchError(f"{message}; rename a file, or leave one out")
            target_of(task)
        for name, value in (("seeds", self.seeds), ("search", self.search)):
            if value < 1:
                raise BenchError(f"--{name} {value} must be at least 1; try --{name} 3")

    @property
    def command(self) -> str:
        """The command line that asks for this league, but for its folder."""
        return command_line(
            "thor", "league",
            tasks=self.tasks,
            optimizers=self.optimizers,
            seeds=self.seeds,
            search=None if self.search == 1 else self.search,
            device=None if self.device == "cpu" else self.device,
        )  # fmt: skip

    def config(self, task: str, optimizer: str, *, seed: int, factor: float) -> RunConfig:
        """Returns a run: the optimizer's defaults, its rates times a factor, the task's budget."""
        workload = find_task(task)
        evaluations = max(1, round(_EVALUATIONS / workload.epochs))
        options = RunOptions(preset=DEFAULTS, evals_per_epoch=evaluations, device=self.device)
        usual = plan_run(workload, optimizer, seed=seed, changes=[_WARMUP], options=options)
        scaled = {
            key: float(f"{value * factor:.6g}")
            for key, value in usual.settings.items()
            if key in _RATES and isinstance(value, float)
        }
        return replace(usual, settings={**usual.settings, **scaled})

    def comparison(
        self,
        task: str,
        factor_of: Mapping[str, float],
        seeds: range,
        *,
        target: float | None = None,
    ) -> Comparison:
        """Returns the runs of one task, seed by seed.

        Args:
            task: The task.
            factor_of: Factor of each optimizer's rates.
            seeds: The seeds.
            target: Where a run ends; None takes the task's.
        """
        return Comparison(
            workload=task,
            optimizers=tuple(factor_of),
            seeds=len(seeds),
            target=target_of(task) if target is None else target,
            runs=tuple(
                self.config(task, name, seed=seed, factor=factor)
                for seed in seeds
                for name, factor in factor_of.items()
            ),
            command=self.command,
            to_target=True,
        )


def factors(count: int) -> list[float]:
    """Returns so many factors around 1: 1, 2, 1/2, 4, 1/4 and so on."""
    return [2.0 ** ((n + 1) // 2 * (1 if n % 2 else -1)) for n in range(count)]


def target_of(task: str) -> float:
    """Returns what is timed on a task: the league's target, or the task's own.

    Raises:
        BenchError: It has none.
    """
    target = TARGETS.get(task, find_task(task).target)
    if target is None:
        raise BenchError(f"--tasks {task}: it has no target; set one in its Task")
    return target
