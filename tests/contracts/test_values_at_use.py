"""Promise: a value that no step can take is an error before the step has changed anything."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import data, gradients, mean_half_square, mlp, train, weights
from torch_thor import EKFAC, KFAC, THOR, Damping, InvalidOptionError, Preconditioner, Refresh

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG: dict[str, tuple[float, ...]] = {
    "damping": (math.nan, math.inf, -math.inf, 0.0, -0.1, 1e-45, 1e-40),
    "lr": (math.nan, math.inf, -math.inf, -0.1),
    "momentum": (math.nan, math.inf, 1.0, -0.1),
    "weight_decay": (math.nan, math.inf, -0.1),
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]
OTHERS: tuple[Any, ...] = ("0.1", None, True, [0.1], torch.tensor([0.1, 0.2]), lambda _: 0.1)


def backward(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()


def assert_refused(model: nn.Module, optimizer: Any, *words: str) -> None:
    """The step is an error of one line; weights, gradients and all state stay."""
    backward(model, optimizer)
    before = [weights(model), gradients(model)]
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InvalidOptionError) as caught:
        optimizer.step()
    assert [word for word in words if word not in str(caught.value)] == []
    after = [weights(model), gradients(model)]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    later = optimizer.state_dict()
    for key in ("state", "curvature"):
        torch.testing.assert_close(later[key], state[key], rtol=0, atol=0)
    assert repr(later["param_groups"]) == repr(state["param_groups"])  # NaN is not itself


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_groups_value_is_checked_by_the_step_that_uses_it(
    kind: Any, name: str, value: float
) -> None:
    """Case 66."""
    model = mlp()
    optimizer = kind(model, [{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    train(model, optimizer, [data(8)] * 2)
    good = optimizer.param_groups[1][name]
    optimizer.param_groups[1][name] = value
    assert_refused(model, optimizer, f"{name} of group 1 at step 2={value}", "a number")
    optimizer.param_groups[1][name] = good
    train(model, optimizer, [data(8)])


@pytest.mark.parametrize("value", OTHERS)
@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_no_number_is_refused_too(name: str, value: Any) -> None:
    """Case 66, 68."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft")
    optimizer.param_groups[0][name] = value
    assert_refused(model, optimizer, f"{name} of group 0", "a number")
    with pytest.raises(InvalidOptionError, match=f"{name} of group 0"):
        THOR(model, [{"params": model.parameters(), name: value}], norm_control="graft")


@pytest.mark.parametrize("value", [0.05, torch.tensor(0.05), torch.tensor([0.05]), 1])
def test_numbers_of_every_kind_are_taken(value: Any) -> None:
    """Case 66: a rate may be a tensor, as torch's own optimizers allow."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=value, damping=value)
    optimizer.param_groups[0].update(lr=value, damping=value)
    train(model, optimizer, [data(8)])


@pytest.mark.parametrize("value", [*WRONG["damping"], None, "0.1"])
@pytest.mark.parametrize("name", ["lr", "damping"])
def test_a_schedules_value_is_checked_by_the_step_that_uses_it(name: str, value: Any) -> None:
    """Case 66."""
    if name == "lr" and isinstance(value, float) and 0 <= value < math.inf:
        return
    model = mlp()
    schedule: Any = {name: lambda step: value if step == 2 else 0.1}
    optimizer = THOR(model, norm_control="graft", **schedule)
    train(model, optimizer, [data(8)] * 2)
    assert_refused(model, optimizer, name, "step 2", str(value), "a number")


@pytest.mark.parametrize("value", WRONG["damping"])
def test_the_preconditioners_schedule_is_checked(value: float) -> None:
    """Case 66."""
    model = mlp()
    preconditioner = Preconditioner(model, damping=lambda step: value if step == 1 else 0.1)
    for _ in range(2):
        model.zero_grad()
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        if preconditioner.engine.steps == 0:
            preconditioner.step()
    state, before = copy.deepcopy(preconditioner.state_dict()), gradients(model)
    with pytest.raises(InvalidOptionError, match="damping at step 1"):
        preconditioner.step()
    torch.testing.assert_close(preconditioner.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(gradients(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -5, None, "20"])
@pytest.mark.parametrize("step", [0, 3])
def test_an_interval_that_is_none_is_an_error(value: Any, step: int) -> None:
    """Case 66: the third kind of schedule."""
    model = mlp()

    def build() -> THOR:
        return THOR(model, norm_control="graft", interval=lambda at: value if at == step else 1)

    if step == 0:
        with pytest.raises(InvalidOptionError, match=r"interval.*step 0"):
            build()
        return
    optimizer = build()
    train(model, optimizer, [data(8)] * 2)
    assert_refused(model, optimizer, "interval", "step 3")


REFUSED_AT_ONCE: list[tuple[str, Callable[[], object]]] = [
    (f"{name}={value}", lambda name=name, value=value: THOR(mlp(), **{name: value}))  # type: ignore[misc]
    for name, value in CASES
]


@pytest.mark.parametrize(("words", "build"), REFUSED_AT_ONCE, ids=[w for w, _ in REFUSED_AT_ONCE])
def test_arguments_are_checked_at_once(words: str, build: Callable[[], object]) -> None:
    """Case 66."""
    with pytest.raises(InvalidOptionError) as caught:
        build()
    assert f"Invalid {words}" in str(caught.value)


@pytest.mark.parametrize("mode", ["both", "sqrt", "pi", "relative"])
@pytest.mark.parametrize("value", [1.2e-38, 1e-37, 1e-30, 1e-20])
def test_the_least_damping_gives_no_weight_that_is_not_finite(value: float, mode: Any) -> None:
    """Case 66: an input that is always zero leaves EKFAC an eigenvalue of zero."""
    model = mlp()
    refresh = Refresh(stagger=False, tolerated_failures=100)
    optimizer = EKFAC(model, damping=Damping(value, mode), factor_interval=1, refresh=refresh)
    for _ in range(20):
        inputs, targets = data(4)
        inputs[:, 0] = 0.0
        train(model, optimizer, [(inputs, targets)])
        assert all(one.isfinite().all() for one in weights(model))
