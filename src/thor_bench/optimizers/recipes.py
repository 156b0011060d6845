"""Tuned settings and horizons: what an optimizer uses on a workload unless the user says else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.optimizers.peers import SOAPSettings
from thor_bench.optimizers.presets import PRESETS
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import (
    AdamWSettings,
    KFACSettings,
    MuonSettings,
    Settings,
    SGDSettings,
    THORSettings,
    override,
    to_values,
)
from thor_bench.optimizers.variants import VARIANTS
from thor_bench.records.config import RunConfig
from thor_bench.tasks import Workload

DEFAULTS = "defaults"  # the preset in which nothing is tuned


@dataclass(frozen=True)
class Recipe:
    """Settings and horizon of one optimizer on one workload.

    Attributes:
        settings: The optimizer's settings.
        epochs: Horizon of the schedule, in epochs.
        batch_size: Samples per step; None takes the workload's.
    """

    settings: Settings
    epochs: float
    batch_size: int | None = None


# What --preset defaults takes in the place of settings that were chosen here: THOR.scale_free, and
# AdamW as torch has it.
UNTUNED: dict[str, Settings] = {
    "thor": THORSettings(
        lr=0.02,
        weight_decay=0.05,
        damping=0.01,
        interval=10,
        norm_control="rms",
        decoupled_decay=True,
        base="adamw",
        base_lr_scale=0.15,
        base_weight_decay=0.0,
    ),
    "adamw": AdamWSettings(lr=0.001, beta2=0.999, weight_decay=0.01),
}

# A fixed root mean square has a rate of its own, so the base rule's stands beside it, as with Muon.
_THOR_DIGITS = THORSettings(
    lr=0.0355,
    weight_decay=0.05,
    warmup=0.25,
    damping=0.42,
    split=128,
    power=1.0,
    interval=8,
    norm_control="rms",
    rows=256,
    decoupled_decay=True,
    base_lr_scale=1.9,
    base_weight_decay=5e-4,
)
_THOR_TABULAR = THORSettings(
    lr=0.09,
    momentum=0.54,
    weight_decay=0.018,
    warmup=0.17,
    damping=0.003,
    split=32,
    interval=24,
    norm_control="rms",
    row_decay=0.8,
    rows=None,
    decoupled_decay=True,
    stagger=False,
)
_SGD_TABULAR = SGDSettings(lr=0.47, momentum=0.82, weight_decay=6e-4, warmup=0.07)
_ADAMW_TABULAR = AdamWSettings(lr=0.0045, beta1=0.57, beta2=0.92, weight_decay=0.29, warmup=0.03)
_THOR_FASHION = THORSettings(
    lr=0.02,
    weight_decay=0.05,
    warmup=0.05,
    damping=1e-3,
    split=None,
    norm_control="rms",
    row_decay=0.95,
    decoupled_decay=True,
    base_lr_scale=25.0,
    base_weight_decay=0.0,
    exclude_head=True,
)
_THOR_AUTOENCODER = THORSettings(
    lr=0.01,
    weight_decay=0.0,
    damping=0.01,
    interval=5,
    split=128,
    norm_control="rms",
    decoupled_decay=True,
    base="adamw",
    base_lr_scale=0.1,
)
_THOR_TEXT = THORSettings(
    lr=0.03,
    weight_decay=0.05,
    damping=1e-4,
    interval=5,
    split=128,
    norm_control="spectral",
    decoupled_decay=True,
    base="adamw",
    base_lr_scale=0.15,
    base_weight_decay=0.0,
    exclude_head=True,
)
_MUON_FASHION = MuonSettings(warmup=0.05, rest_lr=0.5, rest_weight_decay=0.0)
_MUON_AUTOENCODER = MuonSettings(
    weight_decay=0.0, exclude_head=False, rest="adamw", rest_lr=0.001, rest_weight_decay=0.0
)
_MUON_TEXT = MuonSettings(rest="adamw", rest_lr=0.003, rest_weight_decay=0.0)
_KFAC_DIGITS = KFACSettings(lr=0.05, norm_control="graft")
_KFAC_FASHION = KFACSettings(lr=0.15, damping=0.1, interval=50, norm_control=None, rows=4096)

RECIPES: dict[tuple[str, str], Recipe] = {
    ("digits", "thor"): Recipe(_THOR_DIGITS, 2),
    ("digits", "kfac"): Recipe(_KFAC_DIGITS, 5),
    ("digits", "ekfac"): Recipe(_KFAC_DIGITS, 5),
    ("digits", "sgd"): Recipe(SGDSettings(lr=0.05), 4),
    ("digits", "adamw"): Recipe(AdamWSettings(lr=0.003), 5),
    ("digits", "muon"): Recipe(MuonSettings(lr=0.02), 4),
    # Each at the batch that its search found best: larger than the workload's for all three.
    ("tabular", "thor"): Recipe(_THOR_TABULAR, 6.25, batch_size=256),
    ("tabular", "sgd"): Recipe(_SGD_TABULAR, 6.75, batch_size=96),
    ("tabular", "adamw"): Recipe(_ADAMW_TABULAR, 8.75, batch_size=128),
    ("tabular", "muon"): Recipe(MuonSettings(lr=0.02), 5),
    ("fashion", "thor"): Recipe(_THOR_FASHION, 2.75),
    ("fashion", "kfac"): Recipe(_KFAC_FASHION, 4),
    ("fashion", "ekfac"): Recipe(_KFAC_FASHION, 4),
    ("fashion", "sgd"): Recipe(SGDSettings(lr=0.4), 6),
    ("fashion", "adamw"): Recipe(AdamWSettings(lr=0.01), 6),
    ("fashion", "muon"): Recipe(_MUON_FASHION, 3),
    ("fashion", "soap"): Recipe(SOAPSettings(lr=0.01, warmup=0.05), 3),
    ("fashion-autoencoder", "thor"): Recipe(_THOR_AUTOENCODER, 3),
    ("fashion-autoencoder", "sgd"): Recipe(SGDSettings(lr=0.01, weight_decay=0.0), 10),
    ("fashion-autoencoder", "adamw"): Recipe(AdamWSettings(lr=0.002, weight_decay=0.0), 10),
    ("fashion-autoencoder", "muon"): Recipe(_MUON_AUTOENCODER, 3),
    ("text-gpt", "thor"): Recipe(_THOR_TEXT, 2),
    ("text-gpt", "sgd"): Recipe(SGDSettings(lr=0.2), 6),
    ("text-gpt", "adamw"): Recipe(AdamWSettings(lr=0.003), 6),
    ("text-gpt", "muon"): Recipe(_MUON_TEXT, 3),
}
for _variant in VARIANTS:
    # Eq. 6 at λ = 0.03 diverges on digits: the smallest eigenvalues of one batch are near zero.
    _damped = replace(_variant.settings, lr=0.05, damping=1.0)
    # An epoch of digits has 16 steps: at the paper's 20 a run would refresh four times.
    RECIPES["digits", _variant.name] = Recipe(replace(_damped, interval=5.0), 5)
    RECIPES["fashion", _variant.name] = Recipe(replace(_damped, lr=0.15, damping=0.1), 4)


def find_recipe(workload: Workload, optimizer: str, preset: str | None = None) -> Recipe:
    """Returns the tuned recipe, or the optimizer's defaults at the workload's horizon.

    Args:
        workload: What is trained.
        optimizer: Name of the optimizer.
        preset: Name of a published set-up that takes the tuned recipe's place, or ``defaults`` for
            the optimizer's own defaults, nothing tuned.

    Raises:
        BenchError: The workload has no such preset, or the preset has no such optimizer.
    """
    general = Recipe(find_optimizer(optimizer).settings, workload.epochs)
    if preset == DEFAULTS:
        return replace(general, settings=UNTUNED.get(optimizer, general.settings))
    if preset is not None:
        return _published(workload.name, optimizer, preset)
    return RECIPES.get((workload.name, optimizer), general)


def _published(workload: str, optimizer: str, name: str) -> Recipe:
    preset = PRESETS.get((workload, name))
    if preset is None:
        names = [known for of, known in PRESETS if of == workload]
        raise unknown_choice("--preset", name, [*names, DEFAULTS])
    if optimizer not in preset.settings:
        raise unknown_choice(f"--preset {name} with optimizer", optimizer, preset.settings)
    return Recipe(preset.settings[optimizer], preset.epochs, preset.batch_size)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a user may change about a run; None means the recipe's or the workload's value.

    Attributes:
        epochs: Horizon in epochs.
        batch_size: Samples per step.
        evals_per_epoch: Evaluations of the test set per epoch.
        device: torch device that trains.
        preset: What takes the place of the tuned recipe, see ``find_recipe``.
    """

    epochs: float | None = None
    batch_size: int | None = None
    evals_per_epoch: int = 1
    device: str = "cpu"
    preset: str | None = None


def plan_run(
    workload: Workload,
    optimizer: str,
    *,
    seed: int,
    changes: Sequence[str] = (),
    options: RunOptions | None = None,
) -> RunConfig:
    """Settles every detail of a run.

    Args:
        workload: What is trained.
        optimizer: Name of the optimizer.
        seed: Seed of weights, order and augmentation.
        changes: ``key=value`` texts over the recipe's settings.
        options: What else differs from the recipe.

    Raises:
        BenchError: A name, key or value is not allowed.
    """
    options = options or RunOptions()
    if seed < 0:
        raise BenchError(f"--seed {seed} must be at least 0; try --seed 0")
    recipe = find_recipe(workload, optimizer, options.preset)
    usual_batch = recipe.batch_size or workload.batch_size
    settings: Any = override(recipe.settings, changes)
    return RunConfig(
        workload=workload.name,
        optimizer=optimizer,
        settings=to_values(settings),
        epochs=_positive("--epochs", options.epochs, recipe.epochs),
        seed=seed,
        batch_size=_at_least_one("--batch-size", options.batch_size, usual_batch),
        evals_per_epoch=_at_least_one("--evals-per-epoch", options.evals_per_epoch, 1),
        device=options.device,
    )


def _positive(argument: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not 0 < value < math.inf:
        raise BenchError(f"{argument} {value:g} must be above 0; try {argument} {default:g}")
    return value


def _at_least_one(argument: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < 1:
        raise BenchError(f"{argument} {value} must be at least 1; try {argument} {default}")
    return value
