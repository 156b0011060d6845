"""Promise: every layer of a compiled model gets its statistics, fused attention too."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, data, function_modes, mean_half_square, mlp, train
from models import Transformer, autoencoder, batch_for, included
from torch_thor import THOR, Refresh

# dynamo's own
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.mark.parametrize("build", [Transformer, autoencoder])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_compiled_model_trains_as_it_does_uncompiled(build: type, order: str) -> None:
    """Case 3, 7: each layer has curvature, and the losses are those of the model as written."""
    torch._dynamo.reset()
    model = build()
    inputs, targets = batch_for(model)
    twin = copy.deepcopy(model)
    plain = THOR(twin, norm_control="graft", lr=0.02, include=included(twin), **AT_EVERY_STEP)
    expected = train(twin, plain, [(inputs, targets)] * 6)
    run: nn.Module = model
    if order == "before":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    optimizer = THOR(model, norm_control="graft", lr=0.02, include=included(model), **AT_EVERY_STEP)
    if order == "after":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    losses = train(run, optimizer, [(inputs, targets)] * 6)
    assert all(all(stack.ready) for stack in optimizer.engine.stacks)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert losses[-1] < losses[0]
    assert function_modes() == []


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("build", [mlp, Transformer])
def test_a_compiled_model_settles(order: str, build: type) -> None:
    """Case 3, 7: statistics in some steps only, and yet nothing is compiled step by step."""
    torch._dynamo.reset()
    model = build()
    run = (
        cast("nn.Module", torch.compile(model, backend="aot_eager")) if order == "before" else model
    )
    optimizer = THOR(
        model, norm_control="graft", lr=0.02, interval=3, refresh=Refresh(stagger=False)
    )
    if order == "after":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    inputs, targets = data(8) if build is mlp else batch_for(model)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            mean_half_square(run(inputs), targets).backward()
            optimizer.step()

    steps(8)
    with torch._dynamo.config.patch(error_on_recompile=True):
        steps(12)
    assert all(optimizer.engine.stacks[0].ready)
