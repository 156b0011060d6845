"""``THOR.scale_free``: no scale of the loss matters, and one rate trains unlike models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from helpers import draws
from torch_thor import THOR


def _mixed() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    return model.double()


def _trained(scale: float, steps: int = 30) -> tuple[list[Tensor], float]:
    model = _mixed()
    optimizer = THOR.scale_free(model)
    generator = draws(1)
    inputs = torch.randn(32, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (32,), generator=generator)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        (scale * loss).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()], float(loss.detach())


@pytest.mark.parametrize("scale", [0.1, 100.0, 1e6])
def test_the_scale_of_the_loss_changes_nothing(scale: float) -> None:
    plain, loss = _trained(1.0)
    scaled, _ = _trained(scale)
    assert loss < 0.6  # it trains: from 1.7, on random labels
    for mine, other in zip(plain, scaled, strict=True):
        assert torch.allclose(mine, other, atol=1e-3)  # AdamW has an epsilon


@pytest.mark.parametrize("spread", [0.05, 1.0, 20.0])
def test_one_rate_trains_regression_at_any_spread(spread: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    head = nn.Linear(32, 2)
    whole = nn.Sequential(model, head)
    optimizer = THOR.scale_free(whole)
    inputs = spread * torch.randn(256, 6)
    targets = torch.tanh(inputs[:, :2] / spread)
    first = float(mse_loss(whole(inputs), targets).detach())
    for _ in range(100):
        optimizer.zero_grad()
        loss = mse_loss(whole(inputs), targets)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first


def test_its_arguments_reach_the_optimizer() -> None:
    model = _mixed()
    optimizer = THOR.scale_free(model, lr=0.01, weight_decay=0.2, exclude=("4",))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["damping"]) == (0.01, 0.2, 0.01)
    treated = {one.name: one.treatment.name for one in optimizer.coverage().parameters}
    assert treated["0.weight"] != treated["4.weight"]
    with pytest.raises(ValueError, match="lr"):
        THOR.scale_free(_mixed(), lr=-1.0)
