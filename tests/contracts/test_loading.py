"""Promise: loading is the whole state, or nothing at all; what was said wins, or is refused."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, assert_same_weights, convnet, data, grafted, mlp, train
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Damping,
    GrowingInterval,
    InvalidOptionError,
    Preconditioner,
    Refresh,
    StateMismatchError,
    Statistics,
    TraceRule,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FREEZING = TraceRule(update_above=1e9, freeze_below=1e8)
KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "THOR": lambda m: THOR(m, norm_control="graft", interval=3),
    "trace rule": lambda m: THOR(m, norm_control="graft", interval=1, trace_rule=FREEZING),
    "rows evened": lambda m: THOR(m, norm_control="spectral", base="sgd", interval=2),
    "KFAC": lambda m: KFAC(m, lr=0.01, factor_interval=2, inverse_interval=3),
    "EKFAC": lambda m: EKFAC(m, lr=0.01, factor_interval=2, inverse_interval=3),
}


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    for key in ("state", "curvature"):
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
    assert one["param_groups"] == other["param_groups"]


def trained(model: nn.Module, steps: int = 2, **options: Any) -> THOR:
    optimizer = THOR(model, norm_control="graft", interval=1, **options)
    train(model, optimizer, [data(8)] * steps)
    return optimizer


# --- the whole state ---


@pytest.mark.parametrize("name", KINDS)
def test_a_state_of_before_the_first_step_is_a_new_beginning(name: str) -> None:
    """Case 50: a rate finder's reset; the run goes on bit for bit as a new optimizer does."""
    torch.manual_seed(3)
    batches = [data(8) for _ in range(6)]
    model = mlp()
    start = copy.deepcopy(model.state_dict())
    optimizer = KINDS[name](model)
    empty = through_a_file(optimizer.state_dict())
    train(model, optimizer, [data(8) for _ in range(5)])
    model.load_state_dict(start)
    optimizer.load_state_dict(empty)
    assert (optimizer.factor_norms(), optimizer.engine.steps) == ({}, 0)
    assert optimizer.last_decisions == ()

    fresh = mlp()
    fresh.load_state_dict(start)
    new = KINDS[name](fresh)
    assert train(model, optimizer, batches) == train(fresh, new, batches)
    assert_same_weights(model, fresh)
    assert_same_state(optimizer.state_dict(), new.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_a_used_optimizer_loads_as_a_new_one_does(name: str) -> None:
    """Case 50: nothing of what it had stays behind."""
    torch.manual_seed(3)
    source, used, new = mlp(), mlp(), mlp()
    saver = KINDS[name](source)
    train(source, saver, [data(8) for _ in range(3)])
    saved = through_a_file(saver.state_dict())
    optimizer = KINDS[name](used)
    train(used, optimizer, [data(8) for _ in range(5)])
    for model in (used, new):
        model.load_state_dict(source.state_dict())
    other = KINDS[name](new)
    for one in (optimizer, other):
        one.load_state_dict(copy.deepcopy(saved))  # torch takes momentum over as it is
    batches = [data(8) for _ in range(5)]
    train(used, optimizer, batches)
    train(new, other, batches)
    assert_same_weights(used, new)
    assert_same_state(optimizer.state_dict(), other.state_dict())


def test_the_preconditioner_begins_anew_too() -> None:
    """Case 50."""
    model = mlp()
    preconditioner = Preconditioner(model, factor_interval=1)
    empty = preconditioner.state_dict()
    for _ in range(2):
        inputs, targets = data(8)
        ((model(inputs) - targets) ** 2).mean().backward()
        preconditioner.step()
    preconditioner.load_state_dict(empty)
    assert (preconditioner.engine.stacks, preconditioner.engine.steps) == ([], 0)
    torch.testing.assert_close(preconditioner.state_dict(), empty)


def test_a_layer_that_was_frozen_when_it_was_saved_goes_on_when_it_is_thawed() -> None:
    """Case 50, 58: what rests is part of the state."""
    torch.manual_seed(0)
    batches = [data(8) for _ in range(6)]
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [THOR(model, norm_control="graft", **AT_EVERY_STEP) for model in models]

    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches[:2])
        model[0].requires_grad_(False)
        train(model, optimizer, batches[2:4])
    saved = through_a_file(optimizers[1].state_dict())
    optimizers[1] = THOR(models[1], norm_control="graft", **AT_EVERY_STEP)
    optimizers[1].load_state_dict(saved)
    for model, optimizer in zip(models, optimizers, strict=True):
        model[0].requires_grad_(True)
        train(model, optimizer, batches[4:])
    assert_same_weights(*models)


def test_a_layer_may_be_frozen_or_thawed_between_saving_and_loading() -> None:
    """Case 50: gradual unfreezing; which layers are frozen is said after loading, as it may be."""
    model, twin = mlp(), mlp()
    optimizer = trained(model)
    whole = optimizer.state_dict()
    model[0].requires_grad_(requires_grad=False)
    train(model, optimizer, [data(8)])
    part = optimizer.state_dict()
    assert list(part["curvature"]["layers"]) == ["2"]
    other = THOR(twin, norm_control="graft", interval=1)
    other.load_state_dict(part)
    assert sorted(other.factor_norms()) == ["0", "2"]
    twin[0].requires_grad_(requires_grad=False)
    other.load_state_dict(whole)
    assert sorted(other.factor_norms()) == ["2"]
    twin[0].requires_grad_(requires_grad=True)
    train(twin, other, [data(8)])
    assert sorted(other.factor_norms()) == ["0", "2"]


# --- reset_curvature ---


@pytest.mark.parametrize("name", KINDS)
def test_the_curvature_can_be_forgotten_and_the_momentum_stays(name: str) -> None:
    """Case 50."""
    model = mlp()
    optimizer = KINDS[name](model)
    train(model, optimizer, [data(8) for _ in range(5)])
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.reset_curvature()
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert after["param_groups"] == before["param_groups"]
    assert (optimizer.factor_norms(), optimizer.last_decisions) == ({}, ())
    assert optimizer.engine.steps == 5
    assert not any(place.record.frozen for place in optimizer.engine.store)
    assert optimizer.wants_statistics
    train(model, optimizer, [data(8)])
    assert len(optimizer.factor_norms()) == 2


def test_factors_after_a_reset_are_those_of_the_next_batch() -> None:
    """Case 50: whatever was averaged before."""
    model, batch = mlp(), data(8)
    options: dict[str, Any] = {"statistics": Statistics(rows=None), "lr": 0.0}
    optimizer = THOR(model, norm_control="graft", **options)
    train(model, optimizer, [data(8)] * 3)
    optimizer.reset_curvature()
    train(model, optimizer, [batch])
    optimizer.remove()
    fresh = THOR(model, norm_control="graft", **options)
    train(model, fresh, [batch])
    assert optimizer.factor_norms() == fresh.factor_norms()


def test_a_reset_drops_calls_that_wait_and_begins_intervals_anew() -> None:
    """Case 50: refreshes after it come as in the first steps of a run, and resume bit for bit."""
    torch.manual_seed(0)
    batches = [data(8) for _ in range(12)]
    model, twin = mlp(), mlp()

    def build(of: nn.Module) -> THOR:
        return THOR(
            of,
            norm_control="graft",
            interval=GrowingInterval(1, 2.0),
            refresh=Refresh(stagger=False),
        )

    def refreshes(of: nn.Module, optimizer: THOR, parts: list[Any]) -> list[int]:
        found = []
        for place, batch in enumerate(parts):
            train(of, optimizer, [batch])
            if optimizer.last_decisions:
                found.append(place)
        return found

    optimizer = build(model)
    assert refreshes(model, optimizer, batches) == [0, 1, 3, 7]
    model(batches[0][0]).sum().backward()
    optimizer.reset_curvature()
    first = refreshes(model, optimizer, batches[:3])
    twin.load_state_dict(model.state_dict())
    resumed = build(twin)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    then = [refreshes(m, o, batches[3:]) for m, o in ((model, optimizer), (twin, resumed))]
    assert first + [3 + place for place in then[0]] == [0, 1, 3, 7]
    assert then[0] == then[1]
    assert_same_weights(model, twin)


def test_the_preconditioner_can_forget() -> None:
    """Case 50."""
    model = mlp()
    preconditioner = Preconditioner(model)
    inputs, targets = data(8)
    ((model(inputs) - targets) ** 2).mean().backward()
    preconditioner.step()
    preconditioner.reset_curvature()
    assert (preconditioner.engine.stacks, preconditioner.engine.steps) == ([], 1)


# --- all layers but some ---


class Net(nn.Sequential):
    """A body and a head of a number of classes."""

    def __init__(self, classes: int, head: str = "head") -> None:
        super().__init__()
        self.body = mlp()
        self.add_module(head, nn.Linear(3, classes))


def fit(model: nn.Module, optimizer: Any, steps: int, classes: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(8, 5)) - torch.randn(8, classes)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("head", "leave_out"),
    [
        ("head", ("head",)),
        ("head", "head"),
        ("head", ["he*"]),
        ("new", ("head", "new")),
        ("new", ["head", "new*"]),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["curvature", "whole state"])
def test_a_new_head_begins_anew_and_the_other_layers_go_on(
    head: str, leave_out: Any, whole: bool
) -> None:
    """Case 50."""
    old, new = Net(4), Net(7, head)
    saver = THOR(old, norm_control="graft", interval=1)
    fit(old, saver, 3, 4)
    saved = through_a_file(saver.state_dict())
    optimizer = THOR(new, norm_control="graft", interval=5)
    optimizer.load_curvature(saved if whole else saved["curvature"], leave_out=leave_out)
    layers = optimizer.state_dict()["curvature"]["layers"]
    for name in ("body.0", "body.2"):
        theirs = saved["curvature"]["layers"][name]["tensors"]
        torch.testing.assert_close(layers[name]["tensors"], theirs, rtol=0, atol=0)
        assert layers[name]["ready"]
    assert not layers[head]["ready"]
    assert (optimizer.engine.steps, len(optimizer.state)) == (0, 0)
    fit(new, optimizer, 1, 7)
    assert all(entry["ready"] for entry in optimizer.state_dict()["curvature"]["layers"].values())


def test_layers_can_be_left_out_by_type_and_all_of_them_can_be_loaded() -> None:
    """Case 50."""
    model, other = convnet(), convnet()
    saver = THOR(model, norm_control="graft", interval=1)
    train(model, saver, [data(8, 2, 6, 6)])
    optimizer = THOR(other, norm_control="graft", interval=1)
    optimizer.load_curvature(saver.state_dict(), leave_out=nn.Linear)
    ready = {name: entry["ready"] for name, entry in layers_of(optimizer).items()}
    assert ready == {"0": True, "2": True, "5": False}
    optimizer.load_curvature(saver.state_dict())
    assert all(entry["ready"] for entry in layers_of(optimizer).values())


def layers_of(optimizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = optimizer.state_dict()["curvature"]["layers"]
    return found


@pytest.mark.parametrize("split", ["auto", "per_layer"])
def test_a_new_head_where_the_split_is_measured(
    split: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 50: the others keep the checkpoint's cut, the new one gets the usual."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    old, new = Net(4), Net(100)
    saver = THOR(old, norm_control="graft", interval=1, split=2)
    fit(old, saver, 1, 4)
    optimizer = THOR(new, norm_control="graft", interval=1, split=split)
    optimizer.load_curvature(saver.state_dict(), leave_out="head")
    cuts = {name: entry["split"] for name, entry in layers_of(optimizer).items()}
    assert cuts == {"body.0": [2, 2], "body.2": [2, 2], "head": [4, 50]}
    fit(new, optimizer, 2, 100)


@pytest.mark.parametrize(
    ("leave_out", "error", "words"),
    [
        ((), StateMismatchError, "'head'"),
        (("body",), StateMismatchError, "'head'"),
        (("nowhere",), InvalidOptionError, "leave_out='nowhere'"),
        (3, InvalidOptionError, "leave_out=3"),
    ],
)
def test_what_does_not_fit_and_is_not_left_out_is_refused(
    leave_out: Any, error: type[Exception], words: str
) -> None:
    """Case 50."""
    old, new = Net(4), Net(7)
    saver, optimizer = (
        THOR(old, norm_control="graft", interval=1),
        THOR(new, norm_control="graft", interval=1),
    )
    fit(old, saver, 2, 4)
    fit(new, optimizer, 2, 7)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=words):
        optimizer.load_curvature(saver.state_dict(), leave_out=leave_out)
    assert_same_state(optimizer.state_dict(), before)


# --- a refused load changes nothing ---


def _changed(path: tuple[Any, ...], value: Any) -> Callable[[Any], Any]:
    def change(state: Any) -> Any:
        *way, last = path
        inner = state
        for key in way:
            inner = inner[key]
        if value is KeyError:
            del inner[last]
        else:
            inner[last] = value
        return state

    return change


LAYER = ("curvature", "layers", "0")
SPOILED: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda _: {},
    "a list": lambda _: [],
    "None": lambda _: None,
    "words": lambda _: {"curvature": "a", "state": "b", "param_groups": "c"},
    "no curvature": _changed(("curvature",), KeyError),
    "no state": _changed(("state",), KeyError),
    "no groups": _changed(("param_groups",), KeyError),
    "groups are words": _changed(("param_groups",), ["lr"]),
    "no group": _changed(("param_groups",), []),
    "a group without parameters": _changed(("param_groups", 0, "params"), KeyError),
    "a group of fewer parameters": _changed(("param_groups", 0, "params"), [0, 1]),
    "a group without damping": _changed(("param_groups", 0, "damping"), KeyError),
    "a rate that is no number": _changed(("param_groups", 0, "lr"), float("nan")),
    "a rate that is a word": _changed(("param_groups", 0, "lr"), "0.1"),
    "momentum of another shape": _changed(("state", 1, "momentum_buffer"), torch.zeros(9)),
    "momentum that is a word": _changed(("state", 1, "momentum_buffer"), "zero"),
    "a state that is a word": _changed(("state", 0), "zero"),
    "a state of nobody": _changed(("state", 17), {"momentum_buffer": torch.zeros(3)}),
    "an unknown format": _changed(("curvature", "format"), 99),
    "no steps": _changed(("curvature", "steps"), KeyError),
    "steps that are a word": _changed(("curvature", "steps"), "3"),
    "one clock": _changed(("curvature", "clocks"), [{"start": 0, "length": 1, "first": True}]),
    "clocks without a start": _changed(("curvature", "clocks"), [{}, {"begin": 0}]),
    "a clock of words": _changed(("curvature", "clocks", 1, "start"), "0"),
    "another power": _changed(("curvature", "power"), 1.0),
    "an option of another version": _changed(("curvature", "surprise"), 1),
    "layers are a list": _changed(("curvature", "layers"), [1, 2]),
    "a layer is missing": _changed(LAYER, KeyError),
    "a layer is a word": _changed(LAYER, "factors"),
    "a layer too many": _changed(("curvature", "layers", "7"), {}),
    "no tensors": _changed((*LAYER, "tensors"), KeyError),
    "fewer tensors": _changed((*LAYER, "tensors"), []),
    "a tensor of another shape": _changed((*LAYER, "tensors", 1), torch.zeros(2)),
    "a tensor that is none": _changed((*LAYER, "tensors", 1), 0.5),
    "another geometry": _changed((*LAYER, "geometry"), [1, 6, 5]),
    "another cut": _changed((*LAYER, "split"), [2, 2]),
    "no record": _changed((*LAYER, "record"), KeyError),
    "a record of others": _changed((*LAYER, "record", "mood"), "good"),
    "a weight that is a word": _changed((*LAYER, "weight"), "1"),
    "rows of another shape": _changed((*LAYER, "rows"), torch.zeros(99)),
    # The last layer, when all others have been seen to fit.
    "the last layer": _changed(("curvature", "layers", "2", "tensors", 5), torch.zeros(1)),
}


@pytest.mark.parametrize("steps", [0, 2], ids=["new", "used"])
@pytest.mark.parametrize("name", SPOILED)
def test_a_load_that_is_refused_changes_nothing(name: str, steps: int) -> None:
    """Case 64: curvature, momentum, groups and the way on are those of before, bit for bit."""
    torch.manual_seed(0)
    state = through_a_file(trained(mlp(), 3, lr=0.3).state_dict())
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [THOR(model, norm_control="graft", interval=2) for model in models]
    batches = [data(8) for _ in range(steps + 3)]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches[:steps])
    before = copy.deepcopy(optimizers[0].state_dict())
    with pytest.raises(StateMismatchError) as caught:
        optimizers[0].load_state_dict(SPOILED[name](state))
    assert "\n" not in str(caught.value)
    assert_same_state(optimizers[0].state_dict(), before)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches[steps:])
    assert_same_weights(*models)


def test_the_state_that_is_spoiled_there_is_good_otherwise() -> None:
    """Case 64: each of them is refused for what was changed."""
    state = through_a_file(trained(mlp(), 3, lr=0.3).state_dict())
    THOR(mlp(), norm_control="graft", interval=2).load_state_dict(state)


@pytest.mark.parametrize(
    "groups",
    [
        lambda m: [{"params": m[0].parameters()}, {"params": m[2].parameters()}],
        lambda m: [{"params": [m[0].weight, m[0].bias, m[2].weight]}],
    ],
    ids=["more groups", "fewer parameters"],
)
def test_other_groups_are_refused(groups: Callable[[nn.Module], Any]) -> None:
    """Case 64: torch finds them after the curvature has been seen to fit."""
    model, other = mlp(), mlp()
    saved = trained(model).state_dict()
    optimizer = THOR(other, groups(other), norm_control="graft", interval=1)
    train(other, optimizer, [data(8)] * 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(StateMismatchError, match="groups of"):
        optimizer.load_state_dict(saved)
    assert_same_state(optimizer.state_dict(), before)


# --- options that were said ---


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize(
    ("kind", "save_with", "load_with", "words"),
    [
        (grafted, {"split": 4}, {"split": 2}, ["split=2", "(3, 3)", "(2, 2)"]),
        (grafted, {"split": 4}, {"split": None}, ["split=None", "(3, 3)", "(6, 6)"]),
        (grafted, {"split": None}, {"split": 3}, ["split=3", "(6, 6)", "(3, 3)"]),
        (grafted, {"power": 1}, {"power": 0.5}, ["power=1", "power=0.5"]),
        (
            grafted,
            {"statistics": Statistics(fisher="empirical")},
            {"statistics": Statistics(fisher="mc")},
            ["fisher='empirical'", "fisher='mc'"],
        ),
        (
            grafted,
            {"statistics": Statistics(weight_sharing="reduce")},
            {"statistics": Statistics()},
            ["weight_sharing='reduce'", "weight_sharing='expand'"],
        ),
        (
            grafted,
            {"statistics": Statistics(loss_reduction="sum")},
            {"statistics": Statistics()},
            ["loss_reduction='sum'", "loss_reduction='mean'"],
        ),
    ],
)
def test_what_the_curvature_is_must_be_the_same(
    used: bool,
    kind: Any,
    save_with: dict[str, Any],
    load_with: dict[str, Any],
    words: list[str],
) -> None:
    """Case 64: refused as a whole, and both values are named."""
    source, model = mlp(), mlp()
    saver = kind(source, interval=1, **save_with)
    train(source, saver, [data(8)] * 2)
    optimizer = kind(model, interval=1, **load_with)
    if used and load_with.get("statistics", Statistics()).fisher == "empirical":
        train(model, optimizer, [data(8)] * 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(StateMismatchError) as caught:
        optimizer.load_state_dict(saver.state_dict())
    assert [word for word in words if word not in str(caught.value)] == []
    assert_same_state(optimizer.state_dict(), before)
    with pytest.raises(StateMismatchError):
        optimizer.load_curvature(saver.state_dict(), leave_out="0")


def test_kfac_and_ekfac_are_not_each_other() -> None:
    """Case 64."""
    model = mlp()
    saver, optimizer = KFAC(model, lr=0.01), EKFAC(mlp(), lr=0.01)
    train(model, saver, [data(8)])
    with pytest.raises(StateMismatchError, match=r"correction=False.*correction=True"):
        optimizer.load_state_dict(saver.state_dict())


@pytest.mark.parametrize("split", ["auto", "per_layer"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_measured_split_takes_the_checkpoints_cut(
    split: Any, used: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 64: whatever it had measured before."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    model, other = mlp(), mlp()
    saved = trained(model, split=2).state_dict()
    optimizer = THOR(other, norm_control="graft", interval=1, split=split)
    if used:
        train(other, optimizer, [data(8)])
    optimizer.load_state_dict(saved)
    assert {tuple(entry["split"]) for entry in layers_of(optimizer).values()} == {(2, 2)}
    assert_same_state(optimizer.state_dict(), saved)
    train(other, optimizer, [data(8)])


def due(model: nn.Module, optimizer: THOR, steps: int) -> list[int]:
    """The steps at which a layer was decided about."""
    found = []
    for _ in range(steps):
        train(model, optimizer, [data(8)])
        if optimizer.last_decisions:
            found.append(optimizer.engine.steps - 1)
    return found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (1000, 3, [5, 8, 11]),
        (1000, 1, [5, 6, 7, 8, 9, 10, 11, 12]),
        (2, 4, [8, 12]),
        (3, 1000, []),
        (GrowingInterval(20, 1.2), GrowingInterval(2, 1.0), [5, 7, 9, 11]),
        (7, 7, [7]),
    ],
)
def test_the_new_interval_wins_at_once(old: Any, new: Any, expected: list[int]) -> None:
    """Case 64: a saved cycle of a thousand steps does not keep the old interval alive."""
    model, refresh = mlp(), Refresh(stagger=False)
    saver = THOR(model, norm_control="graft", interval=old, refresh=refresh)
    train(model, saver, [data(8)] * 5)
    optimizer = THOR(model, norm_control="graft", interval=new, refresh=refresh)
    optimizer.load_state_dict(through_a_file(saver.state_dict()))
    saver.remove()
    assert due(model, optimizer, 8) == expected


@pytest.mark.parametrize("rule", [None, TraceRule(0.01, 0.0), TraceRule(0.02, 0.001)])
@pytest.mark.parametrize("version", [1, 2])
def test_layers_that_another_rule_froze_are_free(rule: TraceRule | None, version: int) -> None:
    """Case 64: the rule is the new optimizer's; version 0.1 did not save which it was."""
    model = mlp()
    saver = THOR(model, norm_control="graft", trace_rule=FREEZING, **AT_EVERY_STEP)
    train(model, saver, [data(8)] * 3)
    assert all(place.record.frozen for place in saver.engine.store)
    saved = through_a_file(saver.state_dict())
    saver.remove()
    same = THOR(model, norm_control="graft", trace_rule=FREEZING, **AT_EVERY_STEP)
    same.load_state_dict(saved)
    assert due(model, same, 3) == []
    same.remove()
    optimizer = THOR(model, norm_control="graft", trace_rule=rule, **AT_EVERY_STEP)
    optimizer.load_state_dict(as_version_0_1(saved) if version == 1 else saved)
    free = version == 2 or rule is None or rule.freeze_below == 0
    assert due(model, optimizer, 3) == ([3, 4, 5] if free else [])


def test_the_new_damping_mode_wins_at_once() -> None:
    """Case 64: all layers are inverted anew by the next step, whatever their turn."""
    model, twin = mlp(), mlp()
    batches = [data(8) for _ in range(4)]
    options: dict[str, Any] = {"lr": 0.0, "interval": 1000, "power": 1.0}
    saver = THOR(model, norm_control="graft", damping=Damping(0.1, "relative"), **options)
    train(model, saver, batches[:3])
    twin.load_state_dict(model.state_dict())
    optimizer = THOR(twin, norm_control="graft", damping=Damping(0.1, "both"), **options)
    optimizer.load_state_dict(through_a_file(saver.state_dict()))
    train(twin, optimizer, batches[3:])
    stack = optimizer.engine.stacks[0]
    inverses: Any = stack.inverses
    damped = stack.a.blocks + 0.1 * torch.eye(stack.a.blocks.shape[-1])
    torch.testing.assert_close(inverses.a.float(), damped.inverse(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("control", [None, "graft", "rms", "spectral"])
def test_norm_control_order_and_base_rule_are_the_new_optimizers(control: Any) -> None:
    """Case 64: a checkpoint of another base rule loads, and the new rule begins."""
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    saver = THOR(model, norm_control="graft", lr=0.01, interval=1)
    train(model, saver, [data(8)] * 2)
    order = Update(nesterov=False, momentum_first=False, decoupled_decay=True)
    optimizer = THOR(model, norm_control=control, update=order, base=Base("adamw"), interval=1)
    optimizer.load_state_dict(through_a_file(saver.state_dict()))
    saver.remove()
    assert optimizer.norm_control == THOR(mlp(), norm_control=control).norm_control
    train(model, optimizer, [data(8)] * 2)
    assert optimizer.state[model.get_parameter("1.weight")]["step"] == 2
    optimizer.remove()
    back = THOR(model, norm_control="graft", lr=0.01, interval=1)
    back.load_state_dict(through_a_file(optimizer.state_dict()))
    train(model, back, [data(8)])


# --- checkpoints of version 0.1 ---


def as_version_0_1(state: dict[str, Any]) -> dict[str, Any]:
    """The same state as version 0.1 wrote it."""
    old = copy.deepcopy(state)
    for group in old["param_groups"]:
        del group["own"]
    keys = ("power", "eigen", "steps", "clocks", "layers")
    old["curvature"] = {"format": 1, **{key: old["curvature"][key] for key in keys}}
    return old


def by_hand() -> dict[str, Any]:
    """A checkpoint of ``nn.Linear(2, 1, bias=False)``, unsplit, as version 0.1 wrote it."""
    layer = {
        "geometry": [1, 1, 2],
        "record": {"trace": 3.0, "frozen": False, "failures": 0, "starved": False},
        "weight": 0.2,
        "ready": True,
        "split": [2, 1],
        "tensors": [
            torch.eye(2).view(1, 1, 2, 2),
            torch.full((1, 1, 1, 1), 2.0),
            torch.full((1,), 2.0),
            torch.full((1,), 2.0),
            torch.eye(2).view(1, 1, 2, 2),
            torch.full((1, 1, 1, 1), 0.5),
        ],
        "rows": torch.zeros(2),
    }
    group = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "damping": 3e-4, "params": [0]}
    return {
        "state": {0: {"momentum_buffer": torch.ones(1, 2)}},
        "param_groups": [group],
        "curvature": {
            "format": 1,
            "power": 0.5,
            "eigen": False,
            "steps": 4,
            "clocks": [{"start": 0, "length": 20, "first": True}] * 2,
            "layers": {"": layer},
        },
    }


@pytest.mark.parametrize("rows", [True, False])
def test_a_checkpoint_of_version_0_1_loads(rows: bool) -> None:
    """Case 64: with what it has; the first ones had no averages of rows."""
    saved = by_hand()
    if not rows:
        del saved["curvature"]["layers"][""]["rows"]
    model = nn.Linear(2, 1, bias=False)
    optimizer = THOR(model, norm_control="graft", split=None)
    optimizer.load_state_dict(through_a_file(saved))
    clock = optimizer.engine.calendar.clocks[0]
    assert (optimizer.engine.steps, clock.start, clock.length) == (4, 0, 20)
    ours = layers_of(optimizer)[""]["tensors"]
    theirs = saved["curvature"]["layers"][""]["tensors"]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.flatten(), other.flatten())
    assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], torch.ones(1, 2))
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_version_0_1_goes_on_bit_for_bit(name: str) -> None:
    """Case 64."""
    torch.manual_seed(0)
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    batches = [data(8) for _ in range(7)]
    optimizers = [KINDS[name](model) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, batches[:3])
    saved = as_version_0_1(through_a_file(optimizers[1].state_dict()))
    again = KINDS[name](models[1])
    optimizers[1].remove()
    again.load_state_dict(saved)
    train(models[0], optimizers[0], batches[3:])
    train(models[1], again, batches[3:])
    assert_same_weights(*models)


# --- names ---


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_a_wrapped_models_checkpoint_is_the_models(wrap: Any) -> None:
    """Case 67: both ways."""
    model, twin = mlp(), mlp()
    bare = trained(model)
    wrapped = THOR(wrap(twin), norm_control="graft", interval=1)
    wrapped.load_state_dict(bare.state_dict())
    norms = list(bare.factor_norms().values())
    assert list(wrapped.factor_norms().values()) == norms
    again = THOR(mlp(), norm_control="graft", interval=1)
    again.load_state_dict(through_a_file(wrapped.state_dict()))
    assert list(again.factor_norms().values()) == norms


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_a_wrapper_in_an_old_checkpoint_are_understood(prefix: str) -> None:
    """Case 67."""
    model = mlp()
    saved = trained(model).state_dict()
    layers = saved["curvature"]["layers"]
    saved["curvature"]["layers"] = {f"{prefix}{name}": layers[name] for name in layers}
    again = THOR(mlp(), norm_control="graft", interval=1)
    again.load_state_dict(through_a_file(saved))
    assert sorted(again.factor_norms()) == ["0", "2"]
