"""Promise: a compiled model with fused attention gets statistics or says which layers miss them."""

from __future__ import annotations

import warnings
from typing import cast

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, data, mean_half_square, mlp
from models import Transformer, autoencoder, batch_for, included
from torch_thor import THOR, CurvatureWarning, Refresh


@pytest.mark.parametrize("build", [Transformer, autoencoder])
@pytest.mark.parametrize("order", ["before", "after"])
def test_each_layer_has_curvature_or_is_named(build: type, order: str) -> None:
    """Case 3, 7: and the model trains."""
    torch._dynamo.reset()
    model = build()
    inputs, targets = batch_for(model)
    run: nn.Module = model
    if order == "before":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    optimizer = THOR(model, lr=0.02, include=included(model), **AT_EVERY_STEP)
    if order == "after":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    losses = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            optimizer.zero_grad()
            loss = mean_half_square(run(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    said = [str(one.message) for one in caught if issubclass(one.category, CurvatureWarning)]
    engine = optimizer.preconditioner
    ready = {
        layer.name
        for stack in engine.stacks
        for layer, fine in zip(stack.layers, stack.ready, strict=True)
        if fine
    }
    for layer in engine.layers:
        assert layer.name in ready or any(repr(layer.name) in line for line in said), layer.name
    assert losses[-1] < losses[0]
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_compiled_model_settles(order: str) -> None:
    """Case 7: statistics in some steps and none in others: nothing is compiled step by step."""
    torch._dynamo.reset()
    model = mlp()
    run = (
        cast("nn.Module", torch.compile(model, backend="aot_eager")) if order == "before" else model
    )
    optimizer = THOR(model, lr=0.02, interval=3, refresh=Refresh(stagger=False))
    if order == "after":
        run = cast("nn.Module", torch.compile(model, backend="aot_eager"))
    inputs, targets = data(8)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            mean_half_square(run(inputs), targets).backward()
            optimizer.step()

    steps(8)
    with torch._dynamo.config.patch(error_on_recompile=True):
        steps(12)
    assert all(optimizer.preconditioner.stacks[0].ready)
