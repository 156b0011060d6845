"""Promise: a model that ``peft`` wrapped trains its low-rank matrices by natural gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import EXACT_THOR, data, mean_half_square
from peek import factors_of
from torch_thor import THOR, Treatment

peft = pytest.importorskip("peft", reason="install the group 'integrations'")

WRAPPED = "base_model.model"


def wrapped() -> Any:
    """A frozen Linear with a low-rank update, and a head that is trained as a whole."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"], modules_to_save=["2"])
    return peft.get_peft_model(model, config)


def test_low_rank_matrices_are_preconditioned_and_the_rest_stays() -> None:
    """Case 14: with the real wrapper; A of the first matrix is that of its inputs."""
    model = wrapped()
    optimizer = THOR(model, lr=0.05, split=None, **EXACT_THOR)
    report = {entry.name: entry for entry in optimizer.coverage()}
    curved = {n for n, entry in report.items() if entry.treatment is Treatment.PRECONDITIONED}
    assert curved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert f"{WRAPPED}.0.lora_A.default.weight" in curved
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inputs, targets = data(8)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = mean_half_square(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    ((A, _),) = factors_of(optimizer, f"{WRAPPED}.0.lora_A.default")
    torch.testing.assert_close(A, inputs.T @ inputs / len(inputs))


def test_an_adapter_that_is_switched_off_and_merged_leaves_a_working_model() -> None:
    """Case 12, 14: forwards without the adapter count for nothing; merging keeps the outputs."""
    model = wrapped()
    optimizer = THOR(model, norm_control="graft", lr=0.05)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    outputs = model(inputs)
    with model.disable_adapter():
        model(inputs)
    optimizer.remove()
    merged = model.merge_and_unload()
    assert all(not module._forward_hooks for module in merged.modules())
    torch.testing.assert_close(merged(inputs), outputs)
