"""Going on with a run: what is asked for now, and the command that asks for it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thor_bench.optimizers.recipes import find_recipe
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import from_values, override, to_values
from thor_bench.records.config import DataSource, RunConfig
from thor_bench.tasks import find_workload


def resumed_run(
    stored: RunConfig,
    said: Mapping[str, Any],
    *,
    changes: Sequence[str] = (),
    preset: str | None = None,
) -> RunConfig:
    """Settles a run that goes on: what is not said again is as its record has it.

    Args:
        stored: The run on disk.
        said: Fields of the run that were said again, by name.
        changes: ``key=value`` texts that were.
        preset: The preset that was.

    Returns:
        What is asked for now; it differs from ``stored`` only in what was said otherwise.

    Raises:
        BenchError: A name, key or value is not allowed.
    """
    config = replace(stored, **said)
    other = (config.workload, config.optimizer) != (stored.workload, stored.optimizer)
    if other or not (changes or preset):
        return config
    if preset is None:
        kind = type(find_optimizer(stored.optimizer).settings)
        base: Any = from_values(kind, dict(stored.settings))
    else:
        base = find_recipe(find_workload(stored.workload), stored.optimizer, preset).settings
    return replace(config, settings=to_values(override(base, changes)))


def resume_command(config: RunConfig, directory: Path, source: DataSource) -> str:
    """Returns the command that goes on with a run, without the settings that the recipe has."""
    recipe = find_recipe(find_workload(config.workload), config.optimizer)
    usual = to_values(recipe.settings)
    changed = {key: value for key, value in config.settings.items() if value != usual.get(key)}
    command = replace(config, settings=changed).command(directory)
    return shlex.join([*shlex.split(command), *source.words, "--resume"])
