"""Promise: what a parameter group says for itself wins over schedules and over the base rule."""

from __future__ import annotations

import copy
import io
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, assert_same_weights, data, grafted, mlp, train
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Constant,
    CurvatureWarning,
    Damping,
    ExponentialDamping,
    InvalidOptionError,
    PolynomialDecay,
    Update,
)
from torch_thor.curvature.verdict import Verdict, renew

if TYPE_CHECKING:
    from torch_thor.curvature.due import DueLayer

RATE = PolynomialDecay(0.1, end_epoch=10, power=1, steps_per_epoch=1)
STRENGTH = ExponentialDamping(0.2, 0.5, steps_per_epoch=1)
DAMPING = Damping(STRENGTH, "both")


def groups(model: nn.Module, **own: Any) -> list[dict[str, Any]]:
    """The first layer says something for itself, the others nothing."""
    first, *others = list(model.children())
    rest = [p for module in others for p in module.parameters()]
    return [{"params": list(first.parameters()), **own}, {"params": rest}]


@pytest.mark.parametrize("kind", [grafted, KFAC, EKFAC])
def test_a_schedule_serves_the_groups_that_did_not_say_their_own(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 60."""
    model = mlp()
    said = groups(model, lr=1e-3)
    said[1]["damping"] = 0.7
    often = AT_EVERY_STEP if kind is grafted else {"factor_interval": 1, "inverse_interval": 1}
    optimizer = kind(model, said, lr=RATE, damping=DAMPING, **often)
    used: dict[str, float] = {}

    def noting(due: list[DueLayer], *arguments: Any) -> Verdict:
        used.update({one.layer.name: one.damping for one in due})
        return renew(due, *arguments)

    monkeypatch.setattr("torch_thor.curvature.engine.renew", noting)
    for step in range(3):
        train(model, optimizer, [data(8)])
        first, second = optimizer.param_groups
        assert (first["lr"], second["lr"]) == (1e-3, RATE(step))
        assert (first["damping"], second["damping"]) == (STRENGTH(step), 0.7)
        assert used == {"0": STRENGTH(step), "2": 0.7}


def test_a_group_that_is_added_later_is_heard_too() -> None:
    """Case 60."""
    model = mlp()
    optimizer = THOR(model, model[0].parameters(), norm_control="graft", lr=RATE)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.5})
    train(model, optimizer, [data(8)] * 3)
    assert [group["lr"] for group in optimizer.param_groups] == [RATE(2), 0.5]


def test_groups_with_a_rate_of_their_own_train_as_with_constants() -> None:
    """Case 60: the weights, not only the numbers that stand in the groups."""
    torch.manual_seed(1)
    batches = [data(8) for _ in range(4)]
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    scheduled = THOR(
        models[0],
        groups(models[0], lr=0.01, damping=0.1),
        norm_control="graft",
        lr=RATE,
        damping=DAMPING,
        **AT_EVERY_STEP,
    )
    plain = THOR(
        models[1],
        groups(models[1]),
        norm_control="graft",
        damping=Damping(1.0, "both"),
        **AT_EVERY_STEP,
    )
    for step, batch in enumerate(batches):
        plain.param_groups[0].update(lr=0.01, damping=0.1)
        plain.param_groups[1].update(lr=RATE(step), damping=STRENGTH(step))
        train(models[0], scheduled, [batch])
        train(models[1], plain, [batch])
    assert_same_weights(*models)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_weight_decay_of_its_own_holds_for_parameters_of_the_base_rule(
    rule: Any, decoupled: bool
) -> None:
    """Case 74: what is told to one group moves its embedding as torch's own rule would."""
    torch.manual_seed(0)
    tables = [nn.Embedding(5, 3), nn.Embedding(5, 3), nn.Embedding(5, 3)]
    for table in tables[1:]:
        table.load_state_dict(tables[0].state_dict())
    base = Base(rule, weight_decay=0.0)
    update = Update(nesterov=False, decoupled_decay=decoupled)
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.3, "base": base, "update": update}
    own = THOR(
        tables[0],
        [{"params": tables[0].parameters(), "weight_decay": 2.0}],
        norm_control="graft",
        **options,
    )
    plain = THOR(tables[1], norm_control="graft", **options)
    kind: Any = torch.optim.SGD if rule == "sgd" else torch.optim.AdamW
    more = {"momentum": 0.9} if rule == "sgd" else {"betas": base.betas}
    theirs = kind(tables[2].parameters(), lr=0.01, weight_decay=2.0, **more)
    for _ in range(3):
        tokens = torch.randint(5, (8,))
        for table, optimizer in zip(tables, (own, plain, theirs), strict=True):
            optimizer.zero_grad()
            table(tokens).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(tables[0].weight, tables[2].weight)
    assert tables[0].weight.norm() < 0.99 * tables[1].weight.norm()


def test_the_default_shrinks_an_embedding_whose_group_says_so() -> None:
    """Case 74."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    optimizer = THOR(model, groups(model, weight_decay=10.0), lr=0.1)
    weight = model.get_parameter("0.weight")
    before = weight.detach().norm()
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randint(5, (6, 2))).square().mean().backward()
        optimizer.step()
    assert weight.norm() < 0.5 * before


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("old", [False, True])
def test_it_is_still_theirs_after_a_checkpoint(old: bool) -> None:
    """Case 60: in checkpoints of version 0.1 no group says what is its own."""
    model = mlp()
    optimizer = THOR(model, groups(model, lr=1e-3), norm_control="graft", lr=RATE)
    train(model, optimizer, [data(8)] * 2)
    saved = through_a_file(optimizer.state_dict())
    if old:
        for group in saved["param_groups"]:
            del group["own"]
    optimizer.remove()
    again = THOR(model, groups(model, lr=1e-3), norm_control="graft", lr=RATE)
    again.load_state_dict(saved)
    train(model, again, [data(8)])
    assert [group["lr"] for group in again.param_groups] == [1e-3, RATE(2)]


def test_it_is_still_theirs_beside_a_scheduler_of_torch() -> None:
    """Case 60: schedulers write ``lr`` and ``initial_lr`` into all groups."""
    model = mlp()
    optimizer = THOR(
        model, groups(model, damping=0.5), norm_control="graft", lr=0.1, damping=DAMPING
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(2):
        train(model, optimizer, [data(8)])
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]
    assert [g["damping"] for g in optimizer.param_groups] == [0.5, STRENGTH(1)]


def test_groups_that_served_another_optimizer_bring_no_values_of_its_own() -> None:
    """Case 60: torch writes defaults into the user's own dictionaries."""
    model = mlp()
    said = groups(model, lr=1e-3)
    THOR(model, said, norm_control="graft", lr=0.2).remove()
    optimizer = THOR(model, said, norm_control="graft", lr=Constant(0.05))
    train(model, optimizer, [data(8)])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.05]


def test_a_copy_keeps_it() -> None:
    """Case 60: groups are plain data."""
    model = mlp()
    optimizer = THOR(model, groups(model, lr=1e-3), norm_control="graft", lr=RATE)
    assert copy.deepcopy(optimizer.state_dict())["param_groups"][0]["own"] == ("lr",)


def test_options_of_other_optimizers_in_a_group_are_told() -> None:
    model = mlp()
    with pytest.raises(InvalidOptionError, match="maximize"):
        THOR(model, [{"params": model.parameters(), "maximize": True}])
    with pytest.warns(CurvatureWarning, match=r"betas, eps.*Base\("):
        THOR(model, [{"params": list(model.parameters()), "betas": (0.5, 0.5), "eps": 1e-3}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        THOR(model, [{"params": list(model.parameters()), "maximize": False, "name": "all"}])
