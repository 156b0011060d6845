"""``THOR(model)``: no scale of the loss matters, and one rate trains unlike models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from helpers import draws
from torch_thor import THOR, Base, Damping, GrowingInterval, Statistics, TraceRule


def _mixed() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        # A kink would make a jump of what AdamW's epsilon changes, as a vanishing singular value
        # does later in the run.
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    return model.double()


def _trained(scale: float, steps: int = 16) -> tuple[list[Tensor], float]:
    model = _mixed()
    optimizer = THOR(model)
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
    optimizer = THOR(whole)
    inputs = spread * torch.randn(256, 6)
    targets = torch.tanh(inputs[:, :2] / spread)
    first = float(mse_loss(whole(inputs), targets).detach())
    for _ in range(100):
        optimizer.zero_grad()
        loss = mse_loss(whole(inputs), targets)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first


def _settings(optimizer: THOR) -> tuple[object, ...]:
    group, options = optimizer.param_groups[0], optimizer.engine.options
    values = (group["lr"], group["weight_decay"], group["damping"])
    return (*values, options.intervals.factors, options.statistics.rows, options.base)


def test_what_is_not_said_fits_the_norm_control() -> None:
    base = Base("adamw", lr_scale=0.15, weight_decay=0.0, outputs=True, matrices="muon")
    spectral, rms, graft, none = (
        _settings(THOR(_mixed(), norm_control=control))
        for control in ("spectral", "rms", "graft", None)
    )
    assert _settings(THOR(_mixed())) == spectral
    assert spectral == (0.03, 0.05, 0.01, 10, 256, replace(base, biases=True))
    assert rms == (0.02, *spectral[1:-1], base)
    assert graft == none == (0.1, 5e-4, 3e-4, GrowingInterval(20, 1.2), 1024, Base())


def test_what_is_said_holds() -> None:
    said = THOR(_mixed(), lr=0.01, weight_decay=0.0, damping=0.1, interval=3, base="sgd")
    assert _settings(said) == (0.01, 0.0, 0.1, 3, 256, Base())
    with pytest.raises(ValueError, match="lr"):
        THOR(_mixed(), lr=-1.0)


def test_the_paper_is_a_preset_of_its_own() -> None:
    model = _mixed()
    optimizer = THOR.paper(model, damping=0.1)
    options = optimizer.engine.options
    assert options.damping == Damping(0.1, "both")
    assert (options.power, options.split, optimizer.norm_control) == (1.0, 72, None)
    assert options.statistics == Statistics(decay=0.0, rows=None)
    assert options.trace_rule == TraceRule(0.01, 0.0, "product")
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert THOR.paper(model, trace_rule=None, lr=0.1).param_groups[0]["lr"] == 0.1


def test_scale_free_warns_and_keeps_its_settings() -> None:
    with pytest.warns(DeprecationWarning, match=r"THOR\(model\)") as caught:
        optimizer = THOR.scale_free(_mixed(), lr=0.01)
    assert caught[0].filename == __file__
    base = Base("adamw", lr_scale=0.15, weight_decay=0.0)
    assert _settings(optimizer) == (0.01, 0.05, 0.01, GrowingInterval(10, 1.2), 1024, base)
