"""Peers: found by their files, with recipes in the words of ``--set``; options of torch_thor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from torch import nn
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError
from thor_bench.optimizers import peers
from thor_bench.optimizers.peer import Training, imported
from thor_bench.optimizers.peers import kfac, thor
from thor_bench.optimizers.recipes import find_recipe, plan_run
from thor_bench.optimizers.registry import OPTIMIZERS, find_peers
from thor_bench.optimizers.settings import from_values, override, to_values
from thor_bench.tasks import WORKLOADS, find_task
from torch_thor import EKFAC, KFAC, THOR
from torch_thor.update.optimizer import CurvatureOptimizer

if TYPE_CHECKING:
    from pathlib import Path

# All that a new peer takes.
MINE = """
from dataclasses import dataclass
from thor_bench.optimizers.peer import Peer, Recipe, over_parameters
from thor_bench.optimizers.settings import Fraction, Settings

@dataclass(frozen=True, kw_only=True)
class RpropSettings(Settings):
    shrink: Fraction = 0.5

def build(training, settings):
    from torch.optim import Rprop
    return [Rprop(training.model.parameters(), settings.lr, etas=(settings.shrink, 1.2))]

PEERS = (
    Peer("rprop", "resilient steps", RpropSettings(), build, own="shrink", first_order=True,
         recipes={"digits": Recipe("lr=0.001 schedule=constant", 2)}),
)
"""


def test_a_file_is_all_that_a_new_peer_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.setattr(peers, "__path__", [*peers.__path__, str(tmp_path)])
    found = find_peers()
    del sys.modules[f"{peers.__name__}.mine"]
    assert set(found) == {*OPTIMIZERS, "rprop"}
    monkeypatch.setitem(OPTIMIZERS, "rprop", found["rprop"])
    listed = CliRunner().invoke(app, ["optimizers", "digits"], env={"COLUMNS": "200"}).stdout
    assert "resilient steps" in listed
    assert "shrink=0.5" in listed
    words = ["train", "digits", "--optimizer", "rprop", "--epochs", "0.2", "--set", "shrink=0.6"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output


def test_every_name_stands_once() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith(peers.__name__)]
    names = [peer.name for module in modules for peer in getattr(module, "PEERS", ())]
    assert sorted(names) == list(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_recipes_are_of_workloads_and_of_allowed_values(name: str) -> None:
    peer = OPTIMIZERS[name]
    override(peer.settings, peer.untuned.split())
    for key, recipe in peer.recipes.items():
        workload, _, preset = key.partition("/")
        setup = find_recipe(WORKLOADS[workload], name, preset or None)
        assert setup.epochs == recipe.epochs
        assert from_values(type(peer.settings), to_values(setup.settings)) == setup.settings


def test_what_a_package_lacks_is_told_in_one_line() -> None:
    with pytest.raises(BenchError, match=r"comes from nowhere; pip install 'torch-thor\[bench\]'"):
        imported("nowhere.optim.Best")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_the_usual_settings_are_the_optimizers_own(kind: type[KFAC]) -> None:
    (built,) = thor.build(Training(model(), 1), thor.THORSettings())
    assert as_built(built) == as_built(THOR(model(), norm_control="graft"))  # recipes' start
    settings = kfac.KFACSettings(norm_control="graft")  # the bench has kl_clip
    (built,) = kfac.build(kind, Training(model(), 1), settings)
    assert as_built(built) == as_built(kind(model()))


def as_built(optimizer: object) -> list[object]:
    """All that an optimizer was built from but its model."""
    assert isinstance(optimizer, CurvatureOptimizer)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return [group, optimizer.engine.options, optimizer.norm_control, optimizer._rule]


def test_every_setting_reaches_its_option() -> None:
    changes = (
        "lr=0.3 momentum=0.4 weight_decay=0.01 damping=0.2 damping_mode=pi split=2 power=1 "
        "interval=7 growth=1.5 update_above=0.3 freeze_below=0.1 damped_trace=product "
        "rule_compares=distance norm_control=rms row_decay=0.7 decay=0.6 rows=5 fisher=mc "
        "nesterov=no momentum_first=no decoupled_decay=yes base=adamw base_lr_scale=0.5 "
        "base_weight_decay=0.2 base_outputs=yes base_biases=yes base_matrices=muon stagger=no "
        "inverse_dtype=float32 exclude_head=yes"
    )
    settings = override(thor.THORSettings(), changes.split())
    usual = to_values(thor.THORSettings())
    same = [key for key, value in to_values(settings).items() if value == usual[key]]
    ungiven = {"warmup", "schedule", "end_epoch", "lr_power", "warmup_epochs", "warmup_lr"}
    alone = {"damping_rate", "include_norms", "overshoot"}  # the last needs momentum_first=yes
    assert set(same) == ungiven | alone
    (built,) = thor.build(Training(model(), 1), settings)
    assert isinstance(built, CurvatureOptimizer)
    told = repr(as_built(built))
    for option in (
        "'lr': 0.3", "'momentum': 0.4", "'weight_decay': 0.01",
        "Damping(value=0.2, mode='pi')", "split=2", "power=1.0",
        "GrowingInterval(start=7.0, growth=1.5,",
        "TraceRule(update_above=0.3, freeze_below=0.1, damped_trace='product', compare='distance')",
        "NormControl(kind='rms', limit=1.0, per=None, iterations=4, tile='auto', row_decay=0.7)",
        "Statistics(decay=0.6, rows=5, fisher='mc',", "exclude=('2',)",
        "Update(nesterov=False, momentum_first=False, decoupled_decay=True, overshoot=None)",
        "Base(rule='adamw', lr_scale=0.5, weight_decay=0.2,",
        "outputs=True, biases=True, matrices='muon')",
        "Refresh(stagger=False, inverse_dtype=torch.float32,",
    ):  # fmt: skip
        assert option in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("damping=0", "damping=0: must be a number > 0, finite and normal in float32"),
        ("rows=0", "rows=0: must be an int >= 1 or None; the usual value is rows=256"),
        ("rows=few", "rows=few: must be a valid integer or none"),
        ("decay=1", r"decay=1: must be a number in \[0, 1\); the usual value is decay=0.8"),
        ("damping=inf", "damping=inf: must be a finite number"),
        ("inverse_dtype=float16", "must be 'float32' or 'bfloat16' or 'auto' or none"),
        ("freeze_below=-1", "freeze_below=-1: must be a number >= 0 and finite"),
        ("fisher=exact", "fisher=exact: must be 'empirical' or 'mc'"),
    ],
)
def test_what_an_option_does_not_take_is_told_before_the_run(change: str, told: str) -> None:
    with pytest.raises(BenchError, match=told):
        plan_run(find_task("digits"), "thor", seed=0, changes=[change])
