"""With preconditioning off, THOR is torch.optim.SGD bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import (
    assert_same_weights,
    convnet,
    data,
    default_fused,
    default_fused_sgd,
    train,
)
from torch_thor import THOR, Base, Refresh, Update

if TYPE_CHECKING:
    from collections.abc import Callable


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    one, other = convnet(), convnet()
    other.load_state_dict(one.state_dict())
    return one, other


def batches(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [data(8, 2, 6, 6) for _ in range(count)]


@pytest.mark.parametrize("on_nonfinite", ["skip", "ignore"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 5e-4), (0.0, 0.1)])
def test_every_setting_of_sgd(
    momentum: float, decay: float, nesterov: bool, on_nonfinite: Any
) -> None:
    ours, theirs = pair()
    data_of_the_run = batches()
    thor = THOR(
        ours,
        norm_control="graft",
        lr=0.1,
        momentum=momentum,
        weight_decay=decay,
        update=Update(nesterov=nesterov),
        exclude=("*",),
        refresh=Refresh(on_nonfinite=on_nonfinite),
    )
    sgd = torch.optim.SGD(
        theirs.parameters(),
        lr=0.1,
        momentum=momentum,
        weight_decay=decay,
        nesterov=nesterov and momentum > 0,
        fused=default_fused_sgd(),
    )
    assert train(ours, thor, data_of_the_run) == train(theirs, sgd, data_of_the_run)
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=8),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    ],
)
def test_under_a_scheduler(schedule: Callable[[torch.optim.Optimizer], Any]) -> None:
    ours, theirs = pair()
    thor = THOR(
        ours,
        norm_control="graft",
        lr=0.1,
        weight_decay=0.0,
        exclude=(nn.Module,),
        update=Update(nesterov=False),
    )
    fused = default_fused_sgd()
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, fused=fused)
    schedulers = schedule(thor), schedule(sgd)
    for batch in batches():
        train(ours, thor, [batch])
        train(theirs, sgd, [batch])
        for scheduler in schedulers:
            scheduler.step()
    assert_same_weights(ours, theirs)


def test_with_parameter_groups_and_a_group_added_later() -> None:
    ours, theirs = pair()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [
            {"params": list(model[0].parameters()), "lr": 0.05, "weight_decay": 0.0},
            {"params": list(model[2].parameters()), "momentum": 0.5},
        ]

    thor = THOR(
        ours,
        groups(ours),
        norm_control="graft",
        lr=0.1,
        weight_decay=0.01,
        exclude=("*",),
        update=Update(nesterov=False),
    )
    rule: dict[str, Any] = {"momentum": 0.9, "fused": default_fused_sgd()}
    sgd = torch.optim.SGD(groups(theirs), lr=0.1, weight_decay=0.01, **rule)
    for count, batch in enumerate(batches()):
        if count == 3:
            thor.add_param_group({"params": list(ours[5].parameters()), "lr": 0.2})
            sgd.add_param_group({"params": list(theirs[5].parameters()), "lr": 0.2})
        train(ours, thor, [batch])
        train(theirs, sgd, [batch])
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("fused", [None, True, False])
def test_adamw_as_the_base_rule(fused: bool | None) -> None:
    ours, theirs = pair()
    data_of_the_run = batches()
    base = Base("adamw", fused=fused)
    thor = THOR(ours, norm_control="graft", lr=0.01, weight_decay=0.1, exclude=("*",), base=base)
    adamw = torch.optim.AdamW(
        theirs.parameters(),
        lr=0.01,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        fused=default_fused() if fused is None else fused,
    )
    train(ours, thor, data_of_the_run)
    train(theirs, adamw, data_of_the_run)
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("fused", [None, True, False])
def test_adamw_counts_steps_where_its_kernel_looks(fused: bool | None) -> None:
    """On the parameter's device where it is fused; also in a checkpoint from another device."""

    def optimizer(model: nn.Module) -> THOR:
        return THOR(
            model, norm_control="graft", lr=0.01, exclude=("*",), base=Base("adamw", fused=fused)
        )

    here = nn.Linear(5, 3, device="cpu")
    there = nn.Linear(5, 3, device="meta")
    for model in (here, there):
        thor = optimizer(model)
        thor.allocate()
        counts = [thor.state[p]["step"].device for p in model.parameters()]
        assert {one.type for one in counts} == {model.weight.device.type if fused else "cpu"}
    loaded = optimizer(there)
    saved = optimizer(here)
    train(here, saved, [(torch.ones(2, 5, device="cpu"), torch.ones(2, 3, device="cpu"))])
    loaded.load_state_dict(saved.state_dict())
    for parameter in there.parameters():
        assert loaded.state[parameter]["step"].device.type == ("meta" if fused else "cpu")
