"""Promise: Accelerate's ``prepare`` and its loop run unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from helpers import AT_EVERY_STEP, assert_same_weights, mean_half_square, mlp
from torch_thor import THOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

accelerate = pytest.importorskip("accelerate", reason="install the group 'integrations'")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate remembers the first settings of a process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_prepare_accumulate_clip_and_save(tmp_path: Path) -> None:
    """Case 33: the same weights as the loop written by hand, and a state that resumes."""
    model, twin = mlp(), mlp()
    twin.load_state_dict(model.state_dict())
    inputs, targets = torch.randn(24, 5), torch.randn(24, 3)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = THOR(model, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    run, wrapped, loader, schedule = accelerator.prepare(model, optimizer, loader, scheduler)
    for x, y in loader:
        with accelerator.accumulate(run):
            accelerator.backward(mean_half_square(run(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(run.parameters(), 1.0)
            wrapped.step()
            schedule.step()
            wrapped.zero_grad()
    assert optimizer.engine.steps == 3

    by_hand = THOR(twin, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
    schedule = torch.optim.lr_scheduler.ExponentialLR(by_hand, 0.9)
    for x, y in zip(inputs.split(8), targets.split(8), strict=True):
        for part in (slice(0, 4), slice(4, 8)):
            (mean_half_square(twin(x[part]), y[part]) / 2).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        by_hand.step()
        schedule.step()
        by_hand.zero_grad()
    assert_same_weights(model, twin)

    accelerator.save_state(str(tmp_path))
    before = [p.detach().clone() for p in model.parameters()]
    accelerator.backward(mean_half_square(run(inputs), targets))
    optimizer.step()
    accelerator.load_state(str(tmp_path))
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_bf16_mixed_precision_trains() -> None:
    """Case 25, 33."""
    model = mlp(16)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    run, optimizer = accelerator.prepare(
        model, THOR(model, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
    )
    inputs, targets = torch.randn(32, 5), torch.randn(32, 3)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = mean_half_square(run(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    engine = optimizer.optimizer.engine
    assert all(all(stack.ready) for stack in engine.stacks)
