"""Promise: a plain step is a few calls, and on a device that runs behind, the host never waits.

The way that such a device takes is taken on the CPU here: what it does there is what it does here.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calls import Calls, calls_of
from helpers import assert_same_weights, data, mean_half_square, mlp
from models import Transformer, batch_for, resnet20
from torch_thor import (
    THOR,
    Base,
    InvalidOptionError,
    NonFiniteGradientError,
    NormControl,
    Refresh,
    Update,
)
from torch_thor.linalg import foreach

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

# What makes the host wait, or sends it something: numbers, counts, tensors made of lists.
WAITING = {
    *("_local_scalar_dense", "index", "index_put_", "lift_fresh", "masked_select", "nonzero"),
    *("equal", "is_nonzero", "item"),
}
GRAFT: dict[str, Any] = {"norm_control": "graft"}
MOST = 40
CONTROLS = {"graft": MOST, "rms": MOST, None: MOST, NormControl("rms", row_decay=0.95): 52}
BASES = {"sgd": Base(), "adamw": Base("adamw", lr_scale=0.1)}
ORDERS = [
    Update(nesterov=nesterov, momentum_first=first, decoupled_decay=decoupled)
    for nesterov, first, decoupled in [
        *((True, True, False), (False, True, True), (True, False, False)),
        *((False, False, True), (True, False, True)),
    ]
]


@pytest.fixture
def runs_behind(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """The device of the tests counts as one that the host runs ahead of."""
    monkeypatch.setattr(foreach, "_ASYNCHRONOUS", {device.type})


def plain_calls(model: nn.Module, loss: Any, **options: Any) -> Counter[str]:
    """Operations of the third step, the second after a refresh, that are no views."""
    thor = THOR(model, lr=0.01, interval=1000, refresh=Refresh(stagger=False), **GRAFT | options)
    for turn in range(3):
        thor.zero_grad()
        loss(model).backward()
        with Calls() as calls:
            thor.step()
        assert bool(thor.last_decisions) == (turn == 0)
    return calls_of(calls)


def loss_of_images(model: nn.Module) -> Tensor:
    targets = torch.arange(4) % 10
    return nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), targets)


@pytest.mark.cpu  # a device counts its own calls
@pytest.mark.parametrize("norm_control", CONTROLS)
def test_calls_of_a_resnet20(norm_control: Any) -> None:
    found = plain_calls(resnet20(), loss_of_images, norm_control=norm_control)
    assert sum(found.values()) <= CONTROLS[norm_control], found


@pytest.mark.usefixtures("runs_behind")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norm_control", CONTROLS)
def test_calls_of_a_resnet20_whose_device_runs_behind(norm_control: Any, base: str) -> None:
    options = {"norm_control": norm_control, "base": BASES[base]}
    found = plain_calls(resnet20(), loss_of_images, **options)
    assert sum(found.values()) <= CONTROLS[norm_control], found
    assert not WAITING & found.keys()


@pytest.mark.usefixtures("runs_behind")
def test_calls_do_not_grow_with_layers_that_are_large_and_have_biases() -> None:
    """As in a GPT: no bands there, whatever the size."""
    found = []
    for depth in (2, 6):
        model = nn.Sequential(*(nn.Linear(400, 400) for _ in range(depth)))
        found.append(plain_calls(model, lambda m: m(torch.randn(8, 400)).square().mean()))
    assert found[0] == found[1]
    assert sum(found[1].values()) <= MOST, found
    assert not WAITING & found[1].keys()


def step(model: nn.Module, thor: THOR, scale: float = 1.0) -> None:
    thor.zero_grad()
    inputs, targets = data(8)
    (scale * mean_half_square(model(inputs), targets)).backward()
    thor.step()


def state_of(model: nn.Module, thor: THOR) -> Any:
    """All that a step may change, but for counts of steps."""
    state = copy.deepcopy(thor.state_dict())
    layers = state["curvature"]["layers"]
    for layer in layers.values():
        # The last of these is their weight, which goes on; it changes no direction.
        layer["rows"] = layer["rows"][:-1]
    return [p.detach().clone() for p in model.parameters()], state["state"], layers


@pytest.mark.usefixtures("runs_behind")
@pytest.mark.parametrize("control", ["graft", NormControl("rms", row_decay=0.9)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_gradient_that_is_not_finite_moves_nothing(
    bad: float, base: str, order: Update, control: Any
) -> None:
    model = nn.Sequential(mlp(), nn.LayerNorm(3))
    options: dict[str, Any] = {"base": BASES[base], "update": order, "norm_control": control}
    thor = THOR(model, lr=0.05, interval=1000, **GRAFT | options)
    step(model, thor)
    step(model, thor)
    before = state_of(model, thor)
    step(model, thor, bad)
    torch.testing.assert_close(state_of(model, thor), before, rtol=0, atol=0)
    assert thor.skipped_steps == 1
    torch.manual_seed(1)
    step(model, thor)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(not torch.equal(*pair) for pair in zip(model.parameters(), before[0], strict=True))


@pytest.mark.usefixtures("runs_behind")
@pytest.mark.parametrize("norm_control", ["graft", "rms", "spectral", "kl_clip", None])
@pytest.mark.parametrize("order", ORDERS)
def test_both_ways_take_the_same_steps(
    order: Update, norm_control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for behind in (False, True):
        torch.manual_seed(0)
        monkeypatch.setattr(foreach, "_ASYNCHRONOUS", {"cpu"} if behind else set())
        model = Transformer().double()  # in float32 "spectral" makes rounding as long as the rest
        options: dict[str, Any] = {"norm_control": norm_control, "update": order, "split": 4}
        thor = THOR(model, lr=0.01, interval=1000, base="adamw", **GRAFT | options)
        for _ in range(4):
            inputs, targets = batch_for(model)
            thor.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            thor.step()
        found.append(list(model.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("runs_behind")
def test_the_third_in_a_row_is_one_warning_that_comes_later() -> None:
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=1000)
    said = []
    for scale in [1.0, 1.0, torch.nan, 1.0, *[torch.nan] * 20]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(model, thor, scale)
        said.append([str(one.message) for one in caught])
    ((number, (text,)),) = [(n, texts) for n, texts in enumerate(said) if texts]
    assert number == 7  # 4, 5 and 6 were skipped, and it is told in the next
    assert "The last 3 steps were skipped (after 3 that were taken)" in text
    assert thor.skipped_steps == 21
    heir = THOR(mlp(), **GRAFT, lr=0.1, interval=1000)
    heir.load_state_dict(thor.state_dict())
    assert heir.skipped_steps == 21


@pytest.mark.usefixtures("runs_behind")
def test_an_error_waits_for_what_it_says() -> None:
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=1000, refresh=Refresh(on_nonfinite="raise"))
    step(model, thor)
    with pytest.raises(NonFiniteGradientError, match=r"At step 1 the gradient of '0\.weight'"):
        step(model, thor, torch.nan)


@pytest.mark.usefixtures("runs_behind")
def test_a_step_that_refreshes_looks_before_it_takes_statistics_in() -> None:
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=2)
    step(model, thor)
    step(model, thor)
    before = state_of(model, thor)
    step(model, thor, torch.nan)
    torch.testing.assert_close(state_of(model, thor), before, rtol=0, atol=0)


@pytest.mark.usefixtures("runs_behind")
@pytest.mark.parametrize("base", BASES)
def test_a_rate_that_is_a_tensor_is_never_read(base: str) -> None:
    found = []
    for lr in (0.05, torch.tensor(0.05)):
        torch.manual_seed(0)
        model = nn.Sequential(mlp(), nn.LayerNorm(3))
        thor = THOR(model, **GRAFT, lr=0.05, interval=1000, base=BASES[base])
        step(model, thor)
        thor.param_groups[0]["lr"] = lr
        with Calls() as calls:
            step(model, thor)
        found.append(list(model.parameters()))
    # The range of a rate on the CPU is looked at; one on a device is not.
    assert calls.found["_local_scalar_dense"] <= 2
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.usefixtures("runs_behind")
def test_addresses_stay() -> None:
    """A graph that is captured once reads and writes where it did then."""
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=1000)
    found = []
    for _ in range(4):
        step(model, thor)
        found.append(list(addresses(thor)))
    assert found[1] == found[2] == found[3]


@pytest.mark.usefixtures("runs_behind")
def test_steps_that_a_graph_replays_count_for_intervals_and_schedules() -> None:
    model = mlp()
    thor = THOR(
        model,
        norm_control="graft",
        lr=lambda step: 0.1 / (1 + step),
        interval=4,
        refresh=Refresh(stagger=False),
    )
    step(model, thor)
    for taken in (1, 2, 3):
        assert not thor.wants_statistics
        thor.replayed()
        assert thor.param_groups[0]["lr"] == 0.1 / (1 + taken)
    with pytest.raises(
        InvalidOptionError, match=r"step\(\) itself where optimizer.wants_statistics"
    ):
        thor.replayed()
    step(model, thor)
    assert [one.step for one in thor.last_decisions] == [4, 4]


@pytest.mark.cpu  # a compiler per device is slow
@pytest.mark.parametrize("behind", [False, True])
def test_a_compiled_step_is_few_graphs_and_the_same_step(
    behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch.compile, whose rates change from step to step; a refresh in between."""
    monkeypatch.setattr(foreach, "_ASYNCHRONOUS", {"cpu"} if behind else set())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=3, refresh=Refresh(stagger=False))
    twin, theirs = copy.deepcopy((model, thor))
    compiled = torch.compile(thor.step, backend="eager")
    graphs = []
    for number in range(7):
        batch = data(8)
        for module, optimizer, take in ((model, thor, compiled), (twin, theirs, theirs.step)):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
            optimizer.zero_grad()
            mean_half_square(module(batch[0]), batch[1]).backward()
            take()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert_same_weights(model, twin)
    assert graphs[-1] <= 10
    assert len(set(graphs[4:])) == 1  # nothing is compiled again


def addresses(thor: THOR) -> Iterator[int]:
    plan = thor._planner._known
    assert plan is not None
    for together in plan.plan.directions._tiled:
        yield from (
            block.data_ptr() for block in (*together.shared.tiles.g, *together.shared.tiles.a)
        )
        yield from (memory.data_ptr() for memory in together.room()._work.memory)
    for state in thor.state.values():
        yield state["momentum_buffer"].data_ptr()


def test_roots_beside_tiles_are_those_of_the_last_refresh() -> None:
    """A checkpoint's too, which is loaded into a plan that has stepped."""
    model = mlp()
    thor = THOR(model, **GRAFT, lr=0.1, interval=1)
    step(model, thor)
    state, weights = copy.deepcopy(thor.state_dict()), copy.deepcopy(model.state_dict())
    batches = [data(8) for _ in range(2)]

    def go_on() -> list[Tensor]:
        thor.load_state_dict(copy.deepcopy(state))
        model.load_state_dict(weights)
        for inputs, targets in batches:
            thor.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            thor.step()
        return [p.detach().clone() for p in model.parameters()]

    first = go_on()
    torch.testing.assert_close(go_on(), first, rtol=0, atol=0)
