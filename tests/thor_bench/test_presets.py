"""Published set-ups: their values at points worked out by hand from eq. 13, 14 and 15."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.peers import thor
from thor_bench.optimizers.peers.thor import THORSettings
from thor_bench.optimizers.recipes import RunOptions, find_recipe, plan_run
from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.optimizers.rule import TrainingRule, build_rule
from thor_bench.optimizers.settings import from_values, to_values
from thor_bench.tasks import find_task
from torch_thor import THOR, GrowingInterval

STEPS = 10  # per epoch, so that a step is a tenth of an epoch


def rule(preset: str, optimizer: str) -> TrainingRule:
    workload = find_task("imagenet-resnet50")
    config = plan_run(workload, optimizer, seed=0, options=RunOptions(preset=preset))
    return build_rule(nn.Sequential(nn.Linear(3, 2)), config, STEPS)


# α(e) = α (1 - e/e_end)^6 and, past the warm-up, α (1 - (e - 5)/e_end)^6
@pytest.mark.parametrize(
    ("preset", "optimizer", "epoch", "expected"),
    [
        ("paper-256", "paper-thor", 0, 0.045),
        ("paper-256", "paper-thor", 35, 0.045 / 64),  # (1 - 1/2)^6
        ("paper-256", "paper-thor-stop", 35, 0.050 / 64),
        ("paper-256", "paper-thor-nt", 36, 0.045 / 64),
        ("paper-256", "paper-thor", 70, 0.0),
        ("paper-4096", "paper-thor", 0, 0.005),
        ("paper-4096", "paper-thor", 2.5, 0.2275),  # half way from 0.005 to 0.45
        ("paper-4096", "paper-thor", 5, 0.45),
        ("paper-4096", "paper-thor", 32.5, 0.45 / 64),  # 27.5 of 55 epochs after the warm-up
        ("paper-8192", "paper-thor", 0, 0.01),
        ("paper-8192", "paper-thor", 1, 0.168),  # 0.01 + 0.79 / 5
        ("paper-8192", "paper-thor", 29, 0.8 / 64),  # 24 of 48
    ],
)
def test_learning_rates(preset: str, optimizer: str, epoch: float, expected: float) -> None:
    built = rule(preset, optimizer)
    scheduler = built.schedulers[0]
    assert scheduler.base_lrs[0] * scheduler.lr_lambdas[0](round(epoch * STEPS)) == pytest.approx(
        expected, abs=1e-12
    )


# λ(e) = λ0 ρ^(e/10)
@pytest.mark.parametrize(
    ("preset", "epoch", "expected"),
    [
        ("paper-256", 0, 0.03),
        ("paper-256", 10, 0.0261),  # 0.03 · 0.87
        ("paper-256", 20, 0.022707),  # 0.03 · 0.7569
        ("paper-4096", 10, 0.06),
        ("paper-4096", 5, 0.1341641),  # 0.3 √0.2
        ("paper-8192", 20, 0.054),  # 0.6 · 0.09
    ],
)
def test_damping(preset: str, epoch: float, expected: float) -> None:
    workload = find_task("imagenet-resnet50")
    config = plan_run(workload, "paper-thor", seed=0, options=RunOptions(preset=preset))
    settings = from_values(THORSettings, dict(config.settings))
    (optimizer,) = thor.build(Training(nn.Linear(3, 2), STEPS), settings)
    assert isinstance(optimizer, THOR)
    damping = optimizer.engine.options.damping
    assert damping.mode == "both"
    assert callable(damping.value)
    assert damping.value(round(epoch * STEPS)) == pytest.approx(expected, rel=1e-6)


def test_what_else_the_paper_gives() -> None:
    published = [
        (key.split("/"), name)
        for name, peer in OPTIMIZERS.items()
        for key in peer.recipes
        if "/" in key
    ]
    assert len(published) == 16
    for (workload, preset), name in published:
        setup = find_recipe(find_task(workload), name, preset)
        cifar = workload == "cifar10-resnet18"
        assert to_values(setup.settings)["weight_decay"] == 5e-4
        assert getattr(setup.settings, "split", None) in (None, 72 if cifar else 128)
        assert setup.batch_size == (128 if cifar else int(preset.partition("-")[2]))


@pytest.mark.parametrize(
    ("name", "rule", "split", "growing"),
    [
        ("paper-thor", (0.01, 0.0), True, True),
        ("paper-thor-stop", (0.01, 0.001), True, True),
        ("paper-thor-nt", None, True, True),
        ("paper-thor-tr", (0.01, 0.0), False, False),
        ("paper-thor-fre", None, False, True),
        ("paper-thor-sp", None, True, False),
        ("paper-kfac", None, False, False),
    ],
)
def test_variants_are_those_of_the_paper(
    name: str, rule: tuple[float, float] | None, split: bool, growing: bool
) -> None:
    settings = OPTIMIZERS[name].settings
    above = settings.update_above
    assert (None if above is None else (above, settings.freeze_below)) == rule
    assert (settings.split is not None) == split
    assert (settings.growth > 1) == growing
    assert settings.interval == 20
    letter = (settings.power, settings.norm_control, settings.damping_mode, settings.momentum_first)
    assert letter == (1.0, None, "both", False)


def test_defaults_are_nobodys_tuned_settings() -> None:
    workload = find_task("digits")
    config = plan_run(workload, "thor", seed=0, options=RunOptions(preset="defaults"))
    assert config.epochs == workload.epochs
    model = workload.build()
    built = build_rule(model, config, 17).optimizers[0]
    every = GrowingInterval(10, 1.0)
    untuned = THOR(workload.build(), interval=every)
    assert isinstance(built, THOR)
    # What it is built from: groups (the schedule has moved lr), norm control, order, base.
    for one in (built, untuned):
        one.param_groups[0]["lr"] = 0.02
    mine, theirs = built.param_groups[0], untuned.param_groups[0]
    assert {key: mine[key] for key in theirs if key != "params"} == {
        key: theirs[key] for key in theirs if key != "params"
    }
    assert built.norm_control == untuned.norm_control
    assert built._rule == untuned._rule
    assert built.engine.options == untuned.engine.options
    assert config.settings["lr"] == 0.03
    torchs = plan_run(workload, "adamw", seed=0, options=RunOptions(preset="defaults")).settings
    adamw = torch.optim.AdamW(workload.build().parameters()).defaults
    assert (torchs["lr"], torchs["weight_decay"]) == (adamw["lr"], adamw["weight_decay"])
    assert (torchs["beta1"], torchs["beta2"], torchs["eps"]) == (*adamw["betas"], adamw["eps"])


def test_where_no_recipe_stands_the_defaults_do() -> None:
    """Nobody has tuned THOR, AdamW or Muon on these."""
    for task in ("pinn", "vae", "heat"):
        own = find_recipe(find_task(task), "thor").settings
        assert own == find_recipe(find_task(task), "thor", "defaults").settings
    tuned = find_recipe(find_task("digits"), "thor").settings
    assert tuned != find_recipe(find_task("digits"), "thor", "defaults").settings
