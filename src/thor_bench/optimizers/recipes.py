"""What a run uses: the optimizer's recipe for the workload, and what the user says over it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.optimizers.peer import Peer, Recipe, Takes
from thor_bench.optimizers.registry import OPTIMIZERS, find_optimizer
from thor_bench.optimizers.settings import OwnSettings, override, to_values
from thor_bench.records.config import RunConfig
from thor_bench.tasks import WORKLOADS, Squares, Task

_MOST = 2**63 - 1  # of a seed, and of anything that torch counts

DEFAULTS = "defaults"  # the preset in which nothing is tuned


@dataclass(frozen=True)
class Setup:
    """An optimizer on a workload: its settings, its horizon and the samples per step."""

    settings: OwnSettings
    epochs: float
    batch_size: int | None


def find_recipe(workload: Task, optimizer: str, preset: str | None = None) -> Setup:
    """Returns the tuned recipe, or the optimizer's own defaults at the workload's horizon.

    Nothing is tuned for a task of a user's file.

    Args:
        workload: What is trained.
        optimizer: Its name.
        preset: A published set-up in the tuned recipe's place, or ``defaults``: nothing tuned.

    Raises:
        BenchError: The workload has no such preset, or the preset has no such optimizer.
    """
    peer = find_optimizer(optimizer)
    if preset is None and workload.origin is None and workload.name in peer.recipes:
        recipe = peer.recipes[workload.name]
    elif preset in (None, DEFAULTS):
        recipe = Recipe(peer.untuned, workload.epochs)
    else:
        recipe = _published(workload.name, optimizer, str(preset))
    settings = override(peer.settings, recipe.changes.split())
    return Setup(settings, recipe.epochs, recipe.batch_size or workload.batch_size)


def _published(workload: str, optimizer: str, preset: str) -> Recipe:
    key = f"{workload}/{preset}"
    found = {name: peer.recipes[key] for name, peer in OPTIMIZERS.items() if key in peer.recipes}
    if not found:
        keys = {key for peer in OPTIMIZERS.values() for key in peer.recipes}
        presets = [key.partition("/")[2] for key in keys if key.startswith(f"{workload}/")]
        raise unknown_choice("--preset", preset, [*presets, DEFAULTS])
    if optimizer not in found:
        raise unknown_choice(f"--preset {preset} with optimizer", optimizer, found)
    return found[optimizer]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user may change about a run; None means the recipe's or the workload's value.

    ``preset`` is that of ``find_recipe``.
    """

    epochs: float | None = None
    batch_size: int | None = None
    evals_per_epoch: int = 1
    device: str = "cpu"
    preset: str | None = None


def plan_run(
    workload: Task,
    optimizer: str,
    *,
    seed: int,
    changes: Sequence[str] = (),
    options: RunOptions | None = None,
) -> RunConfig:
    """Settles every detail of a run: ``changes`` go over the recipe's settings.

    Raises:
        BenchError: A name, key or value is not allowed, or the task lacks what the optimizer takes.
    """
    _require_residuals(workload, find_optimizer(optimizer))
    options = options or RunOptions()
    usual = find_recipe(workload, optimizer, options.preset)
    epochs = usual.epochs if options.epochs is None else options.epochs
    if not 0 < epochs < math.inf:
        raise BenchError(f"--epochs {epochs:g} must be above 0; try --epochs {usual.epochs:g}")
    return RunConfig(
        workload=workload.name,
        optimizer=optimizer,
        settings=to_values(override(usual.settings, changes)),
        epochs=epochs,
        seed=_at_least("--seed", seed, 0, 0),
        batch_size=_batch_size(workload, usual.batch_size, options.batch_size),
        evals_per_epoch=_at_least("--evals-per-epoch", options.evals_per_epoch, 1, 1),
        device=options.device,
        content=None if workload.origin is None else workload.origin.content,
    )


def _require_residuals(workload: Task, peer: Peer[Any]) -> None:
    if peer.takes is Takes.RESIDUALS and not isinstance(workload.loss, Squares):
        message = f"--optimizer {peer.name} takes residuals, and {workload.name} has a loss alone"
        named = [name for name, task in WORKLOADS.items() if isinstance(task.loss, Squares)]
        remedy = f"a task has them by loss=Squares(residuals), as {', '.join(named)} do"
        raise BenchError(f"{message}; name another optimizer, or give residuals: {remedy}")


def _batch_size(workload: Task, usual: int | None, asked: int | None) -> int | None:
    """Returns the samples per step, or None where the data give batches of their own."""
    if usual is None:
        if asked is not None:
            message = f"--batch-size {asked}: the training data of {workload.name} come in batches"
            raise BenchError(f"{message}; set their size there")
        return None
    return usual if asked is None else _at_least("--batch-size", asked, 1, usual)


def _at_least(argument: str, value: int, least: int, usual: int) -> int:
    if value < least:
        raise BenchError(f"{argument} {value} must be at least {least}; try {argument} {usual}")
    if value > _MOST:
        raise BenchError(f"{argument} {value} must be at most {_MOST}; try {argument} {usual}")
    return value
