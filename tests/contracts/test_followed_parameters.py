"""Promise: what trains is what the groups and the model hold at the step, never a snapshot."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import AT_EVERY_STEP, Scale, data, grafted, mean_half_square, mlp, train, weights
from torch_thor import KFAC, THOR, CurvatureWarning, Preconditioner, Treatment


def treatments(optimizer: Any) -> dict[str, Treatment]:
    return {entry.name: entry.treatment for entry in optimizer.coverage()}


def same_as_replaced(model: nn.Module) -> None:
    """New parameters with the values of the old ones, in the same modules."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))


def test_parameters_that_a_tool_replaces_are_followed() -> None:
    """Case 48: as Accelerate's prepare does under FSDP2; curvature stays with the layer."""
    batches = [data(8) for _ in range(5)]
    found = []
    for replaced in (False, True):
        torch.manual_seed(1)
        model = mlp()
        optimizer = THOR(
            model, norm_control="graft", momentum=0.0, **{**AT_EVERY_STEP, "interval": 3}
        )
        train(model, optimizer, batches[:2])
        if replaced:
            same_as_replaced(model)
            optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer, batches[2:])
        assert set(treatments(optimizer).values()) == {Treatment.PRECONDITIONED}
        found.append(weights(model))
    # The step in which they were replaced has no statistics and keeps the curvature it had.
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_parameters_replaced_before_the_first_step_are_preconditioned() -> None:
    """Case 48."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    same_as_replaced(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, [data(8), data(8)])
    assert set(treatments(optimizer).values()) == {Treatment.PRECONDITIONED}
    assert set(optimizer.factor_norms()) == {"0", "2"}


def test_one_parameter_of_a_group_replaced_by_another() -> None:
    """Case 48: a list of the same length, in place."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    model[0].weight = nn.Parameter(torch.randn_like(model.get_parameter("0.weight")))
    optimizer.param_groups[0]["params"][0] = model[0].weight
    before = model[0].weight.detach().clone()
    train(model, optimizer, [data(8), data(8)])
    assert not torch.equal(before, model[0].weight)
    assert treatments(optimizer)["0.weight"] is Treatment.PRECONDITIONED


def test_a_network_that_grows() -> None:
    """Case 49."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    model.append(nn.Linear(3, 3))
    optimizer.add_param_group({"params": model[3].parameters()})
    train(model, optimizer, [data(8)])
    assert set(optimizer.factor_norms()) == {"0", "2", "3"}
    assert treatments(optimizer)["3.weight"] is Treatment.PRECONDITIONED


def test_a_module_replaced_by_another_of_its_shape_starts_anew() -> None:
    """Kind of case 48: a new head is not the old one, whatever its name."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.0, **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    old = optimizer.factor_norms()
    model[2] = nn.Linear(6, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    assert treatments(optimizer)["2.weight"] is Treatment.BASE  # until its first statistics
    assert optimizer.factor_norms()["0"] == old["0"]
    batch = data(8)
    train(model, optimizer, [batch])
    fresh = THOR(copy.deepcopy(model), norm_control="graft", lr=0.0, **AT_EVERY_STEP)
    train(fresh.engine.model, fresh, [batch])
    assert optimizer.factor_norms()["2"] == fresh.factor_norms()["2"]


def test_new_parameters_in_no_group_are_said_not_to_train() -> None:
    """Case 48, 49: torch's own optimizers say nothing."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    model[2] = nn.Linear(6, 3)
    with pytest.warns(CurvatureWarning, match=r"2\.weight.*add_param_group") as caught:
        train(model, optimizer, [data(8), data(8)])
    assert len(caught) == 1
    assert caught[0].filename.endswith("helpers.py")
    assert treatments(optimizer)["2.weight"] is Treatment.FROZEN


def test_parameters_of_another_model_are_listed() -> None:
    """Case 67: trained by the base rule, and said so."""
    model, other = mlp(), Scale(3)
    with pytest.warns(CurvatureWarning, match="base rule"):
        optimizer = THOR(model, [*model.parameters(), *other.parameters()], norm_control="graft")
    assert "not the model's" in str(optimizer.coverage())


@pytest.mark.parametrize("names", ["kept", "other"])
def test_a_layer_that_is_wrapped_keeps_its_curvature(names: str) -> None:
    """Kind of case 48: the layer is the same wherever it stands."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.0, **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    old = optimizer.factor_norms()
    if names == "other":
        model[0] = nn.Sequential(model[0], nn.Identity())
    else:
        model.append(nn.Identity())
    optimizer.coverage()
    assert list(optimizer.factor_norms().values()) == list(old.values())
    assert ("0.0" in optimizer.factor_norms()) == (names == "other")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [grafted, KFAC])
def test_a_layer_frozen_for_a_while_keeps_its_curvature(steps: int, kind: Any) -> None:
    """Case 58."""
    model = mlp()
    optimizer = kind(model)
    train(model, optimizer, [data(8)])
    curvature = optimizer.factor_norms()
    model[0].requires_grad_(requires_grad=False)
    train(model, optimizer, [data(8) for _ in range(steps)])
    assert set(optimizer.factor_norms()) == {"2"}
    model[0].requires_grad_()
    before = weights(model[0])
    train(model, optimizer, [data(8)])
    assert optimizer.factor_norms()["0"] == curvature["0"]
    assert treatments(optimizer)["0.weight"] is Treatment.PRECONDITIONED
    assert not torch.equal(before[0], weights(model[0])[0])


def test_a_layer_thawed_between_forward_and_step_is_not_called_starved() -> None:
    """Case 10, 48: nobody could have listened to it."""
    model = mlp()
    model[0].requires_grad_(requires_grad=False)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    model[0].requires_grad_()
    train(model, optimizer, [data(8), data(8)])
    assert treatments(optimizer)["0.weight"] is Treatment.PRECONDITIONED


def test_the_preconditioner_follows_too() -> None:
    """Case 48, 49: without groups the model is the truth."""
    model = mlp()
    preconditioner = Preconditioner(model)
    model.append(nn.Linear(3, 3))
    for _ in range(3):
        model.zero_grad()
        mean_half_square(model(data(8)[0]), data(8)[1]).backward()
        preconditioner.step()
    assert {entry.treatment for entry in preconditioner.coverage()} == {Treatment.PRECONDITIONED}


def test_a_change_of_one_layer_costs_the_others_nothing() -> None:
    """Calls that were collected before a group is added still count."""
    batch = data(8)
    found = []
    for grows in (False, True):
        torch.manual_seed(1)
        model = mlp()
        optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
        mean_half_square(model(batch[0]), batch[1]).backward()
        if grows:
            extra = nn.Linear(3, 3)
            model.append(extra)
            optimizer.add_param_group({"params": extra.parameters()})
        optimizer.step()
        found.append({name: optimizer.factor_norms()[name] for name in ("0", "2")})
    assert found[0] == found[1]


class Bypassed(nn.Module):
    """Two of its three layers give their weights away."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(5, 5) for _ in range(3))
        self.idle = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.first.weight, self.first.bias).tanh()
        x = nn.functional.linear(x, self.second.weight, self.second.bias).tanh()
        return self.third(x)[:, :3]


def test_coverage_says_what_the_hooks_saw() -> None:
    """Case 75: bypassed layers and layers that are never called are not preconditioned."""
    model = Bypassed()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    with pytest.warns(CurvatureWarning, match="saw no call") as caught:
        train(model, optimizer, [data(8), data(8)])
    assert {warning.filename.rpartition("/")[2] for warning in caught} == {"helpers.py"}
    assert len(caught) == 2
    entries = {entry.name: entry for entry in optimizer.coverage()}
    assert entries["third.weight"].treatment is Treatment.PRECONDITIONED
    for name in ("first", "second", "idle"):
        assert entries[f"{name}.weight"].treatment is Treatment.BASE
    assert "saw no call" in entries["first.weight"].reason
    assert optimizer.coverage().share(Treatment.PRECONDITIONED) == pytest.approx(0.25)


@pytest.mark.parametrize("build", [grafted, partial(THOR, base="adamw")], ids=["sgd", "adamw"])
def test_a_layer_without_statistics_steps_by_the_base_rule(build: Any) -> None:
    """Case 51, 75: exactly as if it had been excluded."""
    batches = [data(8) for _ in range(4)]
    found = []
    for excluded in ((), ("first", "second", "idle")):
        torch.manual_seed(1)
        model = Bypassed()
        optimizer = build(model, exclude=excluded, interval=1)
        if not excluded:
            with pytest.warns(CurvatureWarning, match="saw no call"):
                train(model, optimizer, batches)
        else:
            train(model, optimizer, batches)
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_two_optimizers_that_step_the_same_layers_are_told_of_each_other() -> None:
    """Case 78: once each."""
    model = mlp()
    first, second = THOR(model, norm_control="graft"), THOR(model, norm_control="graft")

    def in_turn() -> None:
        for _ in range(3):
            train(model, first, [data(8)])
            train(model, second, [data(8)])

    with pytest.warns(CurvatureWarning, match="acts on 2 layers") as caught:
        in_turn()
    assert len(caught) == 2


@pytest.mark.parametrize("alive", [False, True])
def test_an_optimizer_that_is_not_used_any_more_is_no_rival(alive: bool) -> None:
    """Case 78: a cell of a notebook that runs again, a checkpoint that is loaded into a new one."""
    model = mlp()
    old = THOR(model, norm_control="graft")
    train(model, old, [data(8)])
    saved = old.state_dict()
    if not alive:
        del old
    optimizer = THOR(model, norm_control="graft")
    optimizer.load_state_dict(saved)
    train(model, optimizer, [data(8), data(8)])


def test_optimizers_of_parts_are_no_rivals() -> None:
    """Case 78."""
    model = mlp()
    halves = [THOR(model, part.parameters(), norm_control="graft") for part in (model[0], model[2])]
    for half in (*halves, *halves):
        train(model, half, [data(8)])
