"""Promise: every learning rate scheduler of torch drives the optimizer as it drives SGD."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from helpers import AT_EVERY_STEP, data, mlp, train
from torch_thor import EKFAC, KFAC, THOR

ARGUMENTS: dict[str, dict[str, Any]] = {
    "ChainedScheduler": {},
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingLR": {"T_max": 10},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "LinearLR": {"total_iters": 5},
    "MultiStepLR": {"milestones": [2, 4]},
    "MultiplicativeLR": {"lr_lambda": lambda _: 0.9},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 12},
    "PolynomialLR": {"total_iters": 8},
    "ReduceLROnPlateau": {"patience": 0},
    "SequentialLR": {},
    "StepLR": {"step_size": 2},
    "SWALR": {"swa_lr": 0.01, "anneal_epochs": 4},
}


def known() -> set[str]:
    found = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind)
        and issubclass(kind, lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau)
        and not name.startswith("_")
    }
    return {*found, "SWALR"} - {"LRScheduler"}


def build(name: str, optimizer: torch.optim.Optimizer) -> Any:
    if name == "SWALR":
        return torch.optim.swa_utils.SWALR(optimizer, **ARGUMENTS[name])
    if name in {"ChainedScheduler", "SequentialLR"}:
        parts = [
            lr_scheduler.LinearLR(optimizer, total_iters=3),
            lr_scheduler.ExponentialLR(optimizer, 0.9),
        ]
        if name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(parts, optimizer)
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])
    return getattr(lr_scheduler, name)(optimizer, **ARGUMENTS[name])


def test_no_scheduler_of_torch_is_missing_here() -> None:
    assert known() == set(ARGUMENTS)


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_the_values_are_those_that_sgd_gets(name: str, kind: Any) -> None:
    """Case 30: rate and momentum, step by step, while the model trains."""
    model = mlp()
    ours = kind(model, lr=0.1, **({} if kind is not THOR else AT_EVERY_STEP))
    theirs = torch.optim.SGD(mlp().parameters(), lr=0.1, momentum=0.9)
    schedules = [build(name, optimizer) for optimizer in (ours, theirs)]
    seen = set()
    for _ in range(8):
        train(model, ours, [data(8)])
        theirs.step()
        for schedule in schedules:
            if name == "ReduceLROnPlateau":
                schedule.step(1.0)
            else:
                schedule.step()
        for key in ("lr", "momentum"):
            assert ours.param_groups[0][key] == theirs.param_groups[0][key]
        seen.add(ours.param_groups[0]["lr"])
    assert len(seen) > 1


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"LambdaLR", "MultiplicativeLR"}))
def test_scheduler_and_optimizer_resume_together(name: str) -> None:
    """Case 30, 35."""
    torch.manual_seed(1)
    batches = [data(8) for _ in range(6)]

    def fresh() -> tuple[Any, Any, Any]:
        torch.manual_seed(2)
        model = mlp()
        optimizer = THOR(model, norm_control="graft", lr=0.1, **AT_EVERY_STEP)
        return model, optimizer, build(name, optimizer)

    def go(model: Any, optimizer: Any, schedule: Any, part: Any) -> None:
        for batch in part:
            train(model, optimizer, [batch])
            if name == "ReduceLROnPlateau":
                schedule.step(1.0)
            else:
                schedule.step()

    whole = fresh()
    go(*whole, batches[:3])
    saved = copy.deepcopy([part.state_dict() for part in whole])
    other = fresh()
    for part, state in zip(other, saved, strict=True):
        part.load_state_dict(state)
    go(*whole, batches[3:])
    go(*other, batches[3:])
    for ours, theirs in zip(whole[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
