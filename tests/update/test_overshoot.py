"""Rates fall while steps overshoot: against what slopes say, and through checkpoints."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_thor import THOR, InvalidOptionError, Update
from torch_thor.update.overshoot import EVERY

_POINTS = torch.linspace(-1, 1, 64).unsqueeze(1)
_VALUES = torch.sin(3 * _POINTS)


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def _loss(model: nn.Module) -> Tensor:
    return nn.functional.mse_loss(model(_POINTS), _VALUES)


def _train(model: nn.Module, optimizer: THOR, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _share(optimizer: THOR) -> float:
    kept = optimizer.state_dict()["curvature"]["overshoot"]
    return float(kept["share"])


def test_a_constant_rate_leaves_a_lower_floor_than_without() -> None:
    ends = {}
    for overshoot in (None, 0.85):
        model = _net()
        losses = _train(model, THOR(model, update=Update(overshoot=overshoot)), 300)
        ends[overshoot] = sum(losses[-50:]) / 50
    assert ends[0.85] < ends[None] / 4


def test_rates_stay_where_gradients_are_noise() -> None:
    model = _net()
    optimizer = THOR(model)
    generator = torch.Generator().manual_seed(1)
    shares = []
    for _ in range(40 * EVERY):
        noise = torch.randn(_VALUES.shape, generator=generator)
        (model(_POINTS) * noise).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        shares.append(_share(optimizer))
    assert sum(shares) / len(shares) > 0.9


def test_the_share_follows_the_slopes_of_a_step() -> None:
    """One look, against slopes found from the weights before and after the step."""
    model = _net()
    optimizer = THOR(model, lr=0.5, weight_decay=0.0)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1][:2]
    slopes, moved = [], []
    for _ in range(2):
        optimizer.zero_grad()
        _loss(model).backward()
        slopes.append([w.grad.clone() for w in weights if w.grad is not None])
        before = [w.detach().clone() for w in weights]
        optimizer.step()
        moved.append([old - w.detach() for old, w in zip(before, weights, strict=True)])
    first, second = (
        sum(float((g[:4] * d[:4]).sum()) for g, d in zip(own, moved[0], strict=True))
        for own in slopes  # of an eighth of the rows
    )
    assert second / first < -0.85
    expected = math.exp(max(-1.0, second / first + 0.85))
    assert _share(optimizer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cut", [1, EVERY, EVERY + 1, 3 * EVERY + 5])
def test_a_resumed_run_goes_on_bit_for_bit(cut: int) -> None:
    model = _net()
    optimizer = THOR(model, lr=0.1)
    _train(model, optimizer, cut)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = _train(model, optimizer, 3 * EVERY)
    other = _net(1)
    resumed = THOR(other, lr=0.1)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert _train(other, resumed, 3 * EVERY) == expected
    assert _share(resumed) == _share(optimizer)


def test_a_checkpoint_without_shares_brings_whole_rates() -> None:
    model = _net()
    optimizer = THOR(model)
    _train(model, optimizer, 10 * EVERY)
    assert _share(optimizer) < 1.0
    saved = optimizer.state_dict()
    del saved["curvature"]["overshoot"]
    optimizer.load_state_dict(saved)
    assert _share(optimizer) == 1.0


def test_a_gradient_that_is_not_finite_tells_nothing() -> None:
    looks = []
    for broken in (False, True):
        model = _net()
        optimizer = THOR(model, lr=0.5)
        _train(model, optimizer, EVERY + 1)
        if broken:  # the gradient that the followed step leads to
            optimizer.zero_grad()
            (_loss(model) * math.nan).backward()
            optimizer.step()
        _train(model, optimizer, 2 * EVERY)
        kept = optimizer.state_dict()["curvature"]["overshoot"]
        looks.append((kept["share"], kept["before"], kept["after"]))
    assert looks[0] == looks[1]
    assert all(math.isfinite(number) and number for number in looks[0])


def test_it_asks_for_the_momentum_of_gradients() -> None:
    with pytest.raises(InvalidOptionError, match="overshoot"):
        Update(overshoot=0.85, momentum_first=False)
    with pytest.raises(InvalidOptionError, match="overshoot"):
        Update(overshoot=1.5)


def test_groups_have_rates_of_their_own() -> None:
    model = _net()
    first, *others = model.children()
    kept: list[dict[str, Any]] = [
        {"params": list(first.parameters()), "lr": 0.0},
        {"params": [p for one in others for p in one.parameters()]},
    ]
    optimizer = THOR(model, kept)
    _train(model, optimizer, 20 * EVERY)
    assert _share(optimizer) < 1.0


def test_one_outlier_among_batches_tells_of_one_look() -> None:
    model = _net()
    optimizer = THOR(model)
    _train(model, optimizer, EVERY + 1)
    for sign in (1, -1):
        twin, second = copy.deepcopy((model, optimizer))
        (sign * 1e6 * _loss(twin)).backward()
        second.step()
        seen = second.state_dict()["curvature"]["overshoot"]
        assert abs(seen["after"]) <= 2 * abs(seen["before"])


def _shares_of(kind: str) -> float:
    model = _net().double()
    optimizer = THOR(model, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=kind == "scaled", init_scale=2.0**10)
    parts = 2 if kind == "accumulated" else 1
    for _ in range(5 * EVERY + 1):  # later what rounding changes has grown
        optimizer.zero_grad()
        for x, y in zip(_POINTS.double().chunk(parts), _VALUES.double().chunk(parts), strict=True):
            scaler.scale(nn.functional.mse_loss(model(x), y) / parts).backward()
        scaler.step(optimizer)
        scaler.update()
    return _share(optimizer)


@pytest.mark.parametrize("kind", ["scaled", "accumulated"])
def test_how_a_gradient_came_about_does_not_matter(kind: str) -> None:
    plain = _shares_of("plain")
    assert plain < 0.95
    assert _shares_of(kind) == pytest.approx(plain, rel=1e-2)
