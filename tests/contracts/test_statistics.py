"""Promise: ``statistics()`` tells the truth of a step, changes nothing, and waits for nothing."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from calls import Calls, calls_of
from helpers import (
    AT_EVERY_STEP,
    assert_same_weights,
    convnet,
    data,
    gradient_of,
    mean_half_square,
    mlp,
)
from models import resnet20
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    LayerNumbers,
    NormControl,
    Preconditioner,
    StatisticsReport,
    TraceRule,
    Update,
)
from torch_thor.curvature.verdict import Verdict
from torch_thor.directions import orthogonal

if TYPE_CHECKING:
    from collections.abc import Callable

WAITING = {
    *("_local_scalar_dense", "index", "index_put_", "masked_select", "nonzero"),
    *("equal", "is_nonzero", "item"),
}
EVENED = NormControl("rms", row_decay=0.9)
LAST = Update(nesterov=False, momentum_first=False)
KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "thor": THOR,
    "graft": lambda model: THOR(model, norm_control="graft"),
    "evened rows": lambda model: THOR(model, norm_control=EVENED),
    "no control": lambda model: THOR(model, norm_control=None, momentum=0.0, lr=0.01),
    "kl clip": lambda model: THOR(model, norm_control="kl_clip"),
    "momentum last": lambda model: THOR(model, norm_control="graft", update=LAST),
    "kfac": KFAC,
    "ekfac": EKFAC,
    "preconditioner": Preconditioner,
}
EACH = pytest.mark.parametrize("kind", KINDS)


def wide() -> nn.Sequential:
    """A layer that a CPU takes in bands of rows."""
    return nn.Sequential(nn.Linear(5, 400), nn.Tanh(), nn.Linear(400, 400), nn.Linear(400, 3))


def step(model: nn.Module, optimizer: Any, *shape: int) -> None:
    model.zero_grad()
    inputs, targets = data(8, *shape)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()


def trained(kind: str, steps: int = 3, build: Callable[[], nn.Module] = wide) -> tuple[Any, Any]:
    model = build()
    optimizer = KINDS[kind](model)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def numbers_of(report: StatisticsReport) -> dict[str, LayerNumbers]:
    return {one.name: one for one in report}


@EACH
def test_nothing_changes(kind: str) -> None:
    """Neither state nor weights, to the bit, whether it is asked for or not."""
    model = wide()
    twin = copy.deepcopy(model)
    asked, silent = KINDS[kind](model), KINDS[kind](twin)
    for turn in range(4):
        torch.manual_seed(turn)
        step(model, asked)
        before = copy.deepcopy(asked.state_dict())
        asked.statistics().numbers()
        torch.testing.assert_close(asked.state_dict(), before, rtol=0, atol=0, equal_nan=True)
        torch.manual_seed(turn)
        step(twin, silent)
    assert_same_weights(model, twin)


@EACH
def test_nothing_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operations of asking; reading is what waits. Layers of one shape share all calls."""
    # A CPU, which nobody waits for, looks at lengths before it squares them.
    monkeypatch.setattr(orthogonal, "_SAFE_LENGTHS", (0.0, math.inf))
    found = []
    for layers in (2, 6):
        model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(layers)), nn.Linear(5, 3))
        optimizer = KINDS[kind](model)
        for _ in range(2):
            step(model, optimizer)
        optimizer.statistics()  # constants are sent once
        with Calls() as calls:
            optimizer.statistics()
        found.append(calls_of(calls))
    assert not WAITING & found[1].keys()
    # A layer more is to be laid out, and its gradient found.
    assert sum(found[1].values()) - sum(found[0].values()) <= 4 * 8, found


@EACH
def test_nothing_waits_for_a_card(kind: str, device: torch.device) -> None:
    """By torch's own count of synchronizations."""
    if device.type != "cuda":
        pytest.skip("torch counts waits for a card alone")
    _, optimizer = trained(kind)
    optimizer.statistics()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.statistics()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cpu  # a device counts its own calls
def test_calls_of_a_resnet20() -> None:
    """A millisecond or a few on a GPU, where a plain step of the default takes a third as many."""
    model = resnet20()
    thor = THOR(model)
    inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    thor.step()
    thor.statistics()
    with Calls() as calls:
        thor.statistics()
    found = calls_of(calls)
    assert sum(found.values()) <= 1000, found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "preconditioner"])
def test_the_step_is_the_one_that_was_taken(kind: str) -> None:
    """Against the weights before and after; decoupled decay is no part of it."""
    model, optimizer = trained(kind)
    layer = model[0]
    own = [layer.weight, layer.bias]
    curved = [p.detach() for p in own if p in optimizer.engine.store.curved_by]
    before = [p.clone() for p in curved]
    step(model, optimizer)
    group = optimizer.param_groups[0]
    kept = 1.0
    if optimizer._rule.order.momentum_first or optimizer._rule.order.decoupled_decay:
        kept -= group["lr"] * group["weight_decay"]
    moves = [p - kept * old for p, old in zip(curved, before, strict=True)]
    lengths = [torch.cat([one.flatten() for one in part]).norm() for part in (moves, curved)]
    ours = numbers_of(optimizer.statistics())["0"]
    assert ours.step == pytest.approx(float(lengths[0] / lengths[1]), rel=0.02)
    assert 0.0 < ours.turned < 1.0


@pytest.mark.parametrize("control", ["graft", "spectral", EVENED])
def test_how_far_a_direction_is_turned(control: Any) -> None:
    """Without momentum and decay the step is the direction."""
    model = mlp(bias=False)
    weight = model.get_parameter("0.weight")
    thor = THOR(model, norm_control=control, lr=0.1, momentum=0.0, weight_decay=0.0)
    step(model, thor)
    before = weight.detach().clone()
    step(model, thor)
    moved = (before - weight.detach()).flatten()
    gradient = gradient_of(weight).flatten()
    cosine = float(moved @ gradient / (moved.norm() * gradient.norm()))
    assert numbers_of(thor.statistics())["0"].turned == pytest.approx(1 - cosine**2, abs=1e-4)


def test_without_curvature_nothing_turns() -> None:
    """Factors that are the identity, all but."""
    model = mlp(bias=False)
    thor = THOR(model, norm_control="graft", damping=1e6)
    step(model, thor)
    step(model, thor)
    for one in thor.statistics():
        assert one.turned < 1e-6
        assert one.condition_a == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("momentum", "knows_step", "knows_turned"), [(0.9, True, True), (0.0, False, False)]
)
def test_after_zero_grad(momentum: float, *, knows_step: bool, knows_turned: bool) -> None:
    """The momentum is still there, the gradient is not."""
    model = mlp()
    thor = THOR(model, momentum=momentum)
    step(model, thor)
    thor.zero_grad()
    one = numbers_of(thor.statistics())["0"]
    assert math.isfinite(one.step) == knows_step
    assert math.isfinite(one.turned) == knows_turned


@EACH
def test_before_the_first_step(kind: str) -> None:
    optimizer = KINDS[kind](convnet())
    report = optimizer.statistics()
    assert [one.name for one in report] == ["0", "2", "5"]
    assert report.scalars() == {f"failures/{name}": 0.0 for name in ("0", "2", "5")}
    assert "–" in str(report)


def test_age_change_and_failures() -> None:
    model = mlp(bias=False)
    thor = THOR(model, norm_control="graft", interval=3)
    ages, changes = [], []
    for _ in range(8):
        step(model, thor)
        one = numbers_of(thor.statistics())["0"]
        ages.append(one.age)
        changes.append(one.change)
        told = {made.layer: made.change for made in thor.last_decisions}
        assert one.change == told.get("0", one.change)
    assert ages == [0, 1, 2, 0, 1, 2, 0, 1]
    assert math.isinf(changes[0])
    assert 0 < changes[3] < math.inf
    thor.engine.store.stacks[0].records[0].failures = 2
    assert numbers_of(thor.statistics())["0"].failures == 2


def test_a_layer_that_a_rule_keeps_grows_old() -> None:
    model = mlp(bias=False)
    rule = TraceRule(update_above=1e9, freeze_below=0.0)
    thor = THOR(model, norm_control="graft", trace_rule=rule, **AT_EVERY_STEP)
    for _ in range(4):
        step(model, thor)
    one = numbers_of(thor.statistics())["0"]
    assert one.age == 3
    assert 0 < one.change < 1e9


def test_a_refresh_of_which_only_the_device_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host takes in later what a refresh has come to; the report knows."""
    found = []
    for waits in (True, False):
        with monkeypatch.context() as patch:
            if not waits:
                patch.setattr(Verdict, "can_wait", property(lambda self: self.step > 0))
            torch.manual_seed(0)
            model, thor = trained("graft", 0)
            thor.engine.calendar = THOR(mlp(), interval=2).engine.calendar
            for _ in range(3):
                step(model, thor)
            assert (thor.engine.verdict is None) == waits
            report = thor.statistics()
            step(model, thor)  # takes it in; the report is older
            found.append(report.numbers())
    assert found[0] == found[1]
    assert found[0][0].age == 0


def test_age_goes_through_checkpoints() -> None:
    model, thor = trained("thor", 4)
    again = THOR(wide())
    again.load_state_dict(thor.state_dict())
    assert numbers_of(again.statistics())["0"].age == 3
    other, late = trained("thor", 7)
    late.load_curvature(thor.state_dict())
    assert numbers_of(late.statistics())["0"].age == 3
    assert late.engine.steps == 7
    del model, other


def test_frozen_layers_are_left_out_and_come_back() -> None:
    model, thor = trained("thor", 2)
    model[0].weight.requires_grad_(False)
    assert "0" not in numbers_of(thor.statistics())
    model[0].weight.requires_grad_(True)
    assert math.isfinite(numbers_of(thor.statistics())["0"].rank_a)


def test_a_preconditioner_takes_no_steps() -> None:
    _, preconditioner = trained("preconditioner")
    one = numbers_of(preconditioner.statistics())["0"]
    assert math.isnan(one.step)
    assert math.isnan(one.turned)
    assert one.age >= 0
    assert one.rank_a > 1


def test_a_learning_rate_on_the_device() -> None:
    found = []
    for rate in (0.02, torch.tensor(0.02)):
        torch.manual_seed(0)
        model = mlp()
        thor = THOR(model)
        thor.param_groups[0]["lr"] = rate
        step(model, thor)
        found.append([one.step for one in thor.statistics()])
    assert found[0] == pytest.approx(found[1])


def test_a_scheduler_that_has_moved_on() -> None:
    model = mlp()
    thor = THOR(model)
    step(model, thor)
    before = [one.step for one in thor.statistics()]
    thor.param_groups[0]["lr"] = 0.0
    assert [one.step for one in thor.statistics()] == before


def test_it_prints_and_shows_as_a_table() -> None:
    _, thor = trained("thor")
    report = thor.statistics()
    lines = str(report).splitlines()
    for word in ("layer", "age", "rank of A", "condition of G", "step ÷ weight", "turned"):
        assert word in lines[0]
    assert lines[2].split()[0] == "0"
    assert " of 400" in lines[3]
    assert lines[-1] == "after 3 steps"
    shown = report._repr_html_()
    assert shown.count("<tr>") == 1 + len(report.numbers())


def test_scalars_are_finite_and_named_by_quantity_and_layer() -> None:
    _, thor = trained("thor", 1)
    scalars = thor.statistics().scalars()
    assert all(math.isfinite(value) for value in scalars.values())
    assert scalars["age/0"] == 0.0
    assert "rank of A/2" in scalars
    assert "Δ trace/0" not in scalars  # infinite at the first refresh
