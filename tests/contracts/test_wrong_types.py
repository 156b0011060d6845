"""Promise: an argument of a wrong type is an error of one line: name, value, what is allowed."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import data, mlp, train
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Constant,
    CurvatureWarning,
    Damping,
    Distributed,
    ExponentialDamping,
    GrowingInterval,
    Intervals,
    InvalidOptionError,
    NormControl,
    Piecewise,
    PolynomialDecay,
    Preconditioner,
    Refresh,
    Statistics,
    TraceRule,
    Treatment,
    Update,
    WarmupPolynomialDecay,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# What is none of the types that any option takes.
NOTHING: tuple[Any, ...] = ({"rows": 10}, [1], object(), Statistics, b"1", 1j)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "lr": ("0.1", True),
    "momentum": ("0.9", True, None, lambda _: 0.9),
    "weight_decay": ("0", False, lambda _: 0.1),
    "damping": ("0.1", True),
    "split": ("72", True, 7.5),
    "power": ("1", True, None),
    "interval": ("10", True),
    "trace_rule": (True, "paper", 0.01),
    "norm_control": (3, True, Base()),
    "update": ("nesterov", True, 1),
    "statistics": ("mc", True, 1024),
    "refresh": (dict, True, "auto"),
    "base": (True, torch.optim.SGD),
    "distributed": ("nccl", True, None),
}


def message_of(build: Callable[[], object]) -> str:
    with pytest.raises(InvalidOptionError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in OPTIONS.items() for value in (*values, *NOTHING)],
)
def test_every_option_of_an_optimizer_says_what_it_takes(name: str, value: Any) -> None:
    """Case 68."""
    model = mlp()
    message = message_of(lambda: THOR(model, **{name: value}))
    if name == "statistics" and value is Statistics:
        assert "build one" in message
    assert re.match(rf"Invalid {name}\w*=", message)
    assert "Must be" in message
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("name", ["factor_interval", "inverse_interval"])
def test_intervals_of_kfac_too(kind: Any, name: str) -> None:
    """Case 68."""
    for value in ("10", True, None, Intervals(1, 1)):
        if not (value is None and name == "inverse_interval"):
            assert "interval" in message_of(partial(kind, mlp(), **{name: value}))


@pytest.mark.parametrize(
    "kind", [THOR, KFAC, EKFAC, Preconditioner, THOR.paper], ids=lambda kind: kind.__name__
)
def test_what_is_no_model_is_refused(kind: Any) -> None:
    """Case 68."""
    model = mlp()
    wrong = ([model], None, "model", model.parameters(), list(model.parameters()), nn.Linear, 3)
    for value in wrong:
        assert "torch.nn.Module" in message_of(partial(kind, value))


def test_what_are_no_parameters_is_refused() -> None:
    """Case 68: a rate in their place, too, as in torch's own optimizers."""
    model = mlp()
    single = next(model.parameters())
    wrong: tuple[Any, ...] = (
        "weights",
        0.1,
        model,
        single,
        {"params": [single]},
        [0.1],
        ["0.weight"],
        object(),
    )
    for value in wrong:
        message = message_of(partial(THOR, model, value))
        assert message.startswith("Invalid params=")
        assert "lr=0.1" in message
    assert "'params'" in message_of(lambda: THOR(model, [{"lr": 0.1}], norm_control="graft"))
    assert "'params'" in message_of(lambda: THOR(model).add_param_group([single]))  # type: ignore[arg-type]


def test_parameters_as_torch_takes_them_are_taken() -> None:
    """Case 68: the check refuses nothing that worked."""
    model = mlp()
    right: tuple[Any, ...] = (
        model.parameters(),
        list(model.parameters()),
        tuple(model.parameters()),
        model.named_parameters(),
        [{"params": model.parameters()}],
        [{"params": model[0].parameters()}, {"params": list(model[2].parameters())}],
        [{"params": model[0].weight}],
        [{"params": model.named_parameters(), "lr": 0.2}],
    )
    for value in right:
        train(model, THOR(model, value, norm_control="graft"), [data(8)])


DECAY = {"target": 0.1, "end_epoch": 9, "power": 1, "steps_per_epoch": 1}
FIELDS: list[tuple[Any, str, dict[str, Any]]] = [
    (Damping, "damping", {"value": "0.1"}),
    (Damping, "damping mode", {"mode": 1}),
    (Statistics, "decay", {"decay": "0.8"}),
    (Statistics, "decay", {"decay": True}),
    (Statistics, "rows", {"rows": "all"}),
    (Statistics, "rows", {"rows": 12.5}),
    (Statistics, "fisher", {"fisher": None}),
    (Statistics, "weight_sharing", {"weight_sharing": ["expand"]}),
    (Statistics, "seed", {"seed": "0"}),
    (Intervals, "interval", {"factors": "1", "inverses": 1}),
    (Intervals, "interval", {"factors": 1, "inverses": float("inf")}),
    (NormControl, "limit", {"kind": "rms", "limit": "1"}),
    (NormControl, "limit", {"kind": "rms", "limit": float("nan")}),
    (NormControl, "iterations", {"kind": "spectral", "iterations": 2.5}),
    (NormControl, "row_decay", {"kind": "rms", "row_decay": "0.9"}),
    (Update, "nesterov", {"nesterov": "yes"}),
    (Update, "momentum_first", {"momentum_first": 1}),
    (Refresh, "stagger", {"stagger": None}),
    (Refresh, "inverse_dtype", {"inverse_dtype": 16}),
    (Refresh, "tolerated_failures", {"tolerated_failures": 1.5}),
    (Refresh, "on_nonfinite", {"on_nonfinite": True}),
    (Base, "lr_scale", {"lr_scale": "0.1"}),
    (Base, "weight_decay", {"weight_decay": -1.0}),
    (Base, "weight_decay", {"weight_decay": float("nan")}),
    (Base, "betas", {"betas": 0.9}),
    (Base, "betas", {"betas": (0.9,)}),
    (Base, "betas", {"betas": (0.9, 1.0)}),
    (Base, "eps", {"eps": None}),
    (Base, "fused", {"fused": "yes"}),
    (TraceRule, "update_above", {"update_above": "0.1"}),
    (TraceRule, "freeze_below", {"freeze_below": float("nan")}),
    (TraceRule, "compare", {"compare": 1}),
    (Distributed, "timeout", {"timeout": "600"}),
    (Distributed, "timeout", {"timeout": float("inf")}),
    (Distributed, "group", {"group": "world"}),
    (Distributed, "reduce_gradients", {"reduce_gradients": "yes"}),
    (Constant, "value", {"value": "0.1"}),
    (PolynomialDecay, "target", {**DECAY, "target": "1"}),
    (PolynomialDecay, "end_epoch", {**DECAY, "end_epoch": "9"}),
    (ExponentialDamping, "rate", {"initial": 0.1, "rate": float("nan"), "steps_per_epoch": 1}),
    (
        WarmupPolynomialDecay,
        "power",
        {**DECAY, "start": 0.0, "warmup_epochs": 1, "power": None},
    ),
    (GrowingInterval, "start", {"start": "20"}),
    (GrowingInterval, "growth", {"growth": float("inf")}),
    (GrowingInterval, "maximum", {"maximum": "500"}),
    (Piecewise, "boundaries", {"boundaries": 10, "values": (1.0, 0.1)}),
    (Piecewise, "values", {"boundaries": (10,), "values": ("1", "0.1")}),
]


@pytest.mark.parametrize(("kind", "name", "arguments"), FIELDS)
def test_every_field_of_a_group_of_options_says_what_it_takes(
    kind: Any, name: str, arguments: dict[str, Any]
) -> None:
    """Case 68."""
    assert message_of(lambda: kind(**arguments)).startswith(f"Invalid {name}=")


def test_the_base_rule_may_be_named() -> None:
    """Case 68: as the norm control may."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", base="adamw", exclude="0")
    train(model, optimizer, [data(8)])
    assert "exp_avg" in optimizer.state[model.get_parameter("0.weight")]
    assert "'sgd' or 'adamw'" in message_of(lambda: THOR(mlp(), norm_control="graft", base="adam"))  # type: ignore[arg-type]


def test_a_long_value_is_cut_off() -> None:
    """Case 68: one line, whatever was passed."""
    value: Any = torch.randn(100, 100)
    assert "…" in message_of(lambda: THOR(mlp(), norm_control="graft", statistics=value))


def test_parameters_of_another_model_are_refused() -> None:
    """Case 67."""
    model, other = mlp(), mlp()
    assert "of the model" in message_of(
        lambda: THOR(model, other.parameters(), norm_control="graft")
    )
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


def test_some_foreign_parameters_are_counted_in_a_warning_and_train_by_the_base_rule() -> None:
    """Case 67."""
    model, margin = mlp(), nn.Parameter(torch.ones(3))
    with pytest.warns(CurvatureWarning, match=r"1 of 5 parameters.*base rule") as seen:
        optimizer = THOR(model, [*model.parameters(), margin], norm_control="graft", lr=0.1)
    assert seen[0].filename == __file__
    twin = nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([twin], lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for _ in range(3):
        inputs, targets = data(8)
        for parameter in (margin, twin):
            parameter.grad = torch.full((3,), 0.5)
        ((model(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
        sgd.step()
    assert torch.equal(margin, twin)
    ours = [entry.treatment for entry in optimizer.coverage() if entry.name.startswith("0.")]
    assert ours == [Treatment.PRECONDITIONED] * 2


def test_a_foreign_group_that_is_added_is_warned_about() -> None:
    """Case 67: a network that grows has its new parameters, another does not."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    model.append(nn.Linear(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.add_param_group({"params": model[3].parameters()})
    with pytest.warns(CurvatureWarning, match="2 of 2 parameters"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})


def test_a_group_that_is_refused_is_not_added() -> None:
    """Case 68."""
    model = nn.Sequential(nn.Embedding(4, 5, sparse=True), *mlp())
    optimizer = THOR(model, model[1:].parameters(), norm_control="graft")
    for group in ({"params": model[0].parameters()}, {"params": [], "lr": "0.1"}):
        with pytest.raises(InvalidOptionError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
