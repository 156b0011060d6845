"""Fused kernels on a CPU: the same steps, in fewer passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from calls import Calls
from helpers import mean_half_square
from torch_thor import THOR, Base, Update
from torch_thor.update import fused

ORDERS = [
    Update(nesterov=True, momentum_first=True, decoupled_decay=False),
    Update(nesterov=False, momentum_first=True, decoupled_decay=True),
    Update(nesterov=True, momentum_first=False, decoupled_decay=False),
    Update(nesterov=False, momentum_first=False, decoupled_decay=True),
]


@pytest.mark.cpu
@pytest.mark.parametrize("width", [30, 400])  # those of 400 rows go in bands
@pytest.mark.parametrize("order", ORDERS)
def test_fused_kernels_take_the_same_steps(
    order: Update, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = [], []
    for many in (1 << 40, 0):
        monkeypatch.setattr(fused, "_MANY", many)
        torch.manual_seed(0)
        layers = nn.Linear(30, width, bias=False), nn.Linear(width, 400, bias=False)
        model = nn.Sequential(layers[0], nn.Tanh(), layers[1]).double()
        options: dict[str, Any] = {"norm_control": "graft", "update": order, "base": "adamw"}
        thor = THOR(model, lr=0.1, weight_decay=0.1, interval=2, **options)
        for _ in range(3):
            thor.zero_grad()
            inputs, targets = torch.randn(9, 30).double(), torch.randn(9, 400).double()
            mean_half_square(model(inputs), targets).backward()
            with Calls() as seen:
                thor.step()
        calls.append(seen.found["_fused_sgd_"])
        found.append(list(model.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
    assert calls[0] == 0 < calls[1]


def _convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Flatten()).double()


def _three_steps(model: nn.Module, thor: THOR) -> None:
    torch.manual_seed(1)
    inputs, targets = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 512).double()
    for _ in range(3):
        thor.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        thor.step()


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("base", [Base("sgd", fused=True), Base("adamw")])
@pytest.mark.parametrize("loads", [False, True])
def test_momentum_that_lies_in_another_order_belongs_to_the_same_entries(
    base: Base, *, excluded: bool, loads: bool
) -> None:
    options: dict[str, Any] = {"norm_control": "rms", "update": ORDERS[2], "base": base}
    options["exclude"] = nn.Conv2d if excluded else ()
    found = []
    for changes in (False, True):
        model = _convolutions()
        thor = THOR(model, lr=0.05, **options)
        _three_steps(model, thor)
        if changes and loads:
            saved = copy.deepcopy((model.state_dict(), thor.state_dict()))
            model = _convolutions().to(memory_format=torch.channels_last)
            thor = THOR(model, lr=0.05, **options)
            model.load_state_dict(saved[0])
            thor.load_state_dict(saved[1])
        elif changes:
            model.to(memory_format=torch.channels_last)
        _three_steps(model, thor)
        found.append(list(model.parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-9)
