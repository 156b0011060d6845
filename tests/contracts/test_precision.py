"""Promise: half types in parameters or under autocast give float32 statistics, and no error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, a_scaler, mean_half_square
from models import Transformer, autoencoder, batch_for, included
from torch_thor import EKFAC, KFAC, THOR, Preconditioner
from torch_thor.curvature.engine import CurvatureEngine

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = pytest.mark.parametrize("build", [Transformer, autoencoder])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def engine_of(optimizer: Any) -> CurvatureEngine:
    engine = optimizer.engine
    assert isinstance(engine, CurvatureEngine)
    return engine


@MODELS
@DTYPES
@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
def test_autocast_trains_with_float32_factors(
    build: Callable[[], nn.Module], dtype: torch.dtype, kind: Any
) -> None:
    """Case 25."""
    model = build()
    options = AT_EVERY_STEP if kind is THOR else {"factor_interval": 1, "inverse_interval": 1}
    optimizer = kind(model, lr=0.02, include=included(model), **options)
    inputs, targets = batch_for(model)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast(torch.get_default_device().type, dtype):
            outputs = model(inputs)
        loss = mean_half_square(outputs.float(), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for stack in engine_of(optimizer).stacks:
        assert stack.a.blocks.dtype == stack.g.blocks.dtype == torch.float32
        assert all(stack.ready)


@MODELS
def test_autocast_statistics_are_those_of_full_precision_but_for_rounding(
    build: Callable[[], nn.Module],
) -> None:
    """Case 25: the factors of bf16 calls lie near those of float32 calls."""
    model = build()
    inputs, targets = batch_for(model)
    found = []
    for enabled in (False, True):
        model.zero_grad()
        preconditioner = Preconditioner(model, include=included(model))
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=enabled):
            outputs = model(inputs)
        mean_half_square(outputs.float(), targets).backward()
        preconditioner.step()
        preconditioner.remove()
        found.append(
            {
                layer.name: float(s.g.traces[slot].sum() * s.a.traces[slot].sum())
                for s in preconditioner.engine.stacks
                for slot, layer in enumerate(s.layers)
            }
        )
    assert found[0].keys() == found[1].keys()
    for name, exact in found[0].items():
        assert found[1][name] == pytest.approx(exact, rel=0.2), name


@MODELS
@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
def test_bf16_parameters_train(build: Callable[[], nn.Module], kind: Any) -> None:
    """Case 25, 37."""
    model = build().bfloat16()
    options = AT_EVERY_STEP if kind is THOR else {"factor_interval": 1, "inverse_interval": 1}
    optimizer = kind(model, lr=0.02, include=included(model), **options)
    inputs, targets = batch_for(model)
    inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = mean_half_square(model(inputs).float(), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    for stack in engine_of(optimizer).stacks:
        assert stack.a.blocks.dtype == torch.float32


def test_the_fp16_recipe_of_torch() -> None:
    """Case 25, 28: autocast, a scaler that starts far too high, clipping, accumulation."""
    model = Transformer()
    optimizer = THOR(model, norm_control="graft", lr=0.02, include=included(model), **AT_EVERY_STEP)
    scaler = a_scaler(init_scale=2.0**40)
    inputs, targets = batch_for(model, 16)
    losses, skipped = [], 0
    for _ in range(40):
        optimizer.zero_grad()
        total = 0.0
        for x, y in zip(inputs.split(8), targets.split(8), strict=True):
            with torch.autocast(torch.get_default_device().type, torch.float16):
                outputs = model(x)
            loss = mean_half_square(outputs.float(), y) / 2
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
        losses.append(total)
    assert skipped >= 1
    assert engine_of(optimizer).steps == 40 - skipped
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
