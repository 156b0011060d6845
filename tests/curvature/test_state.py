"""Checkpoints: a resumed run goes on bit for bit, a wrong one is refused as a whole."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import assert_same_weights, convnet, data, mlp, train, weights
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Damping,
    ExponentialDamping,
    GrowingInterval,
    PolynomialDecay,
    Preconditioner,
    Refresh,
    StateMismatchError,
    Statistics,
    TraceRule,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 14
OPTIONS: dict[str, Callable[[nn.Module], THOR | KFAC]] = {
    "defaults, refreshed often": lambda m: THOR(m, norm_control="graft", interval=3),
    "growing interval": lambda m: THOR(m, norm_control="graft", interval=GrowingInterval(2, 1.5)),
    "not staggered": lambda m: THOR(
        m, norm_control="graft", interval=4, refresh=Refresh(stagger=False)
    ),
    "few rows": lambda m: THOR(m, norm_control="graft", interval=2, statistics=Statistics(rows=5)),
    "trace rule": lambda m: THOR(
        m, norm_control="graft", interval=2, trace_rule=TraceRule(0.3, 0.1)
    ),
    "paper order": lambda m: THOR(
        m, norm_control="graft", interval=2, update=Update(False, False, False)
    ),
    "schedules": lambda m: THOR(
        m,
        norm_control="graft",
        lr=PolynomialDecay(0.05, 10, 2, 2),
        damping=Damping(ExponentialDamping(0.1, 0.5, 1), "both"),
        interval=3,
        power=1.0,
    ),
    "split and adamw": lambda m: THOR(
        m, norm_control="graft", interval=3, split=4, base=Base("adamw", lr_scale=0.1)
    ),
    "low precision inverses": lambda m: THOR(
        m, norm_control="graft", interval=3, refresh=Refresh(inverse_dtype=torch.bfloat16)
    ),
    "KFAC": lambda m: KFAC(m, lr=0.01, factor_interval=2, inverse_interval=5),
    "EKFAC": lambda m: EKFAC(m, lr=0.01, factor_interval=2, inverse_interval=5),
}


def model_of() -> nn.Sequential:
    """Layers that are preconditioned, and norms that are not."""
    return nn.Sequential(*convnet()[:4], nn.BatchNorm2d(4), *convnet()[4:])


def through_a_file(state: Any, **options: Any) -> Any:
    """Case 38: only tensors, numbers, strings and containers, so ``weights_only`` loads it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, **options)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=4)
@given(stop=st.integers(0, STEPS - 1))
def test_resume_is_bit_exact_at_any_step(name: str, stop: int) -> None:
    """Case 35: between refreshes too, and before the first step."""
    torch.manual_seed(4)
    batches = [data(8, 2, 6, 6) for _ in range(STEPS)]
    model = model_of()
    start = copy.deepcopy(model.state_dict())
    optimizer = OPTIONS[name](model)
    train(model, optimizer, batches)

    first = model_of()
    first.load_state_dict(start)
    interrupted = OPTIONS[name](first)
    train(first, interrupted, batches[:stop])
    saved = through_a_file({"model": first.state_dict(), "optimizer": interrupted.state_dict()})

    second = model_of()
    second.load_state_dict(saved["model"])
    resumed = OPTIONS[name](second)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, batches[stop:])
    assert_same_weights(second, model)
    assert resumed.last_decisions == optimizer.last_decisions


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
def test_the_preconditioner_alone_resumes(stop: int) -> None:
    """Case 35."""
    batches = [data(8) for _ in range(8)]

    def run(model: nn.Module, parts: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
        state: Any = None
        momentum: Any = None
        for part in parts:
            preconditioner = Preconditioner(model, factor_interval=3)
            sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            if state is not None:
                preconditioner.load_state_dict(state)
                sgd.load_state_dict(momentum)
            for inputs, targets in part:
                sgd.zero_grad()
                ((model(inputs) - targets) ** 2).mean().backward()
                preconditioner.step()
                sgd.step()
            state = through_a_file(preconditioner.state_dict())
            momentum = through_a_file(sgd.state_dict())
            preconditioner.remove()

    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    run(models[0], [batches])
    run(models[1], [batches[:stop], batches[stop:]])
    assert_same_weights(*models)


class Branches(nn.Module):
    """Two heads, of which one is used at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.norm = nn.LayerNorm(3)
        self.active = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.heads[self.active](torch.tanh(self.body(x))))


def test_a_parameter_that_never_had_a_gradient_does_not_break_the_resume() -> None:
    """Case 35."""
    batches = [data(8) for _ in range(8)]
    models = [Branches(), Branches()]
    models[1].load_state_dict(models[0].state_dict())
    whole, part = (THOR(model, norm_control="graft", interval=2) for model in models)
    train(models[0], whole, batches[:4])
    train(models[1], part, batches[:4])
    state = through_a_file(part.state_dict())
    resumed = THOR(models[1], norm_control="graft", interval=2)
    part.remove()
    resumed.load_state_dict(state)
    for model in models:
        model.active = 1
    train(models[0], whole, batches[4:])
    train(models[1], resumed, batches[4:])
    assert_same_weights(*models)


def test_a_saved_state_does_not_change_when_training_goes_on() -> None:
    """Case 35: a snapshot in memory is a snapshot of the curvature."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", interval=1)
    train(model, optimizer, [data(8)] * 2)
    state = optimizer.state_dict()["curvature"]
    before = copy.deepcopy(state)
    train(model, optimizer, [data(8)] * 2)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


NEEDS_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a second device needs a CUDA build and a GPU"
)


@pytest.mark.parametrize("saved_on", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_map_location_moves_the_state_and_the_next_step_works(saved_on: str) -> None:
    """Case 34: saved on a device, loaded through the CPU, and gone on with on the CPU."""
    torch.set_default_device("cpu")  # the fixture sets it back
    model, batches = mlp().to(saved_on), [data(8) for _ in range(3)]
    optimizer = THOR(model, norm_control="graft", interval=1)
    train(model, optimizer, [(x.to(saved_on), y.to(saved_on)) for x, y in batches[:2]])
    state = through_a_file(optimizer.state_dict(), map_location=torch.device("cpu"))
    twin = mlp()
    twin.load_state_dict(model.state_dict())
    resumed = THOR(twin, norm_control="graft", interval=1)
    resumed.load_state_dict(state)
    train(twin, resumed, batches[2:])
    train(model, optimizer, [(x.to(saved_on), y.to(saved_on)) for x, y in batches[2:]])
    for moved, stayed in zip(weights(twin), weights(model), strict=True):
        torch.testing.assert_close(moved, stayed.cpu())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: mlp(width=7), ["'0'"]),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Tanh(), nn.Linear(6, 3)), ["'3'"]),
        (lambda: nn.Sequential(*mlp(), nn.Linear(3, 3)), ["'3'"]),
        (lambda: nn.Sequential(nn.Linear(5, 3)), []),
    ],
    ids=["other width", "other names", "more layers", "fewer layers"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_loaded(
    other: Callable[[], nn.Module], words: list[str], trained: bool
) -> None:
    """Case 36."""
    source = mlp()
    saver = THOR(source, norm_control="graft", interval=1)
    train(source, saver, [data(8)] * 2)
    model = other()
    optimizer = THOR(model, norm_control="graft", interval=1)
    if trained:
        train(model, optimizer, [data(8)])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"\S") as caught:
        optimizer.load_state_dict(saver.state_dict())
    assert [word for word in words if word not in str(caught.value)] == []
    after = optimizer.state_dict()
    torch.testing.assert_close(after["curvature"], before["curvature"], rtol=0, atol=0)
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
    assert after["param_groups"] == before["param_groups"]
    train(model, optimizer, [data(8)])


@pytest.mark.parametrize(
    ("save_with", "load_with"),
    [
        ({"split": 4}, {"split": 2}),
        ({"split": 4}, {"split": None}),
        ({"power": 1.0}, {"power": 0.5}),
    ],
)
def test_other_options_are_refused(save_with: dict[str, Any], load_with: dict[str, Any]) -> None:
    """Case 36: inverses of another power or cut must not be used in silence."""
    model = mlp()
    saver = THOR(model, interval=1, **save_with)
    train(model, saver, [data(8)])
    saver.remove()
    loader = THOR(model, interval=1, **load_with)
    train(model, loader, [data(8)])
    with pytest.raises(StateMismatchError):
        loader.load_state_dict(saver.state_dict())


@pytest.mark.parametrize("state", [{}, {"curvature": {"format": 99}}])
def test_a_state_without_readable_curvature_is_refused(state: dict[str, Any]) -> None:
    """Case 36: for instance torch.optim.SGD's own."""
    model = mlp()
    plain = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    with pytest.raises(StateMismatchError, match="curvature"):
        THOR(model, norm_control="graft").load_state_dict({**plain, **state})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_factors_stay_float32_through_a_checkpoint(dtype: torch.dtype) -> None:
    """Case 37: torch casts state tensors to their parameter's type; factors are none of them."""
    model = mlp().to(dtype)
    optimizer = THOR(model, norm_control="graft", interval=1)
    train(model, optimizer, [data(8, dtype=dtype)] * 2)
    resumed = THOR(model, norm_control="graft", interval=1)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for old, new in zip(optimizer.engine.stacks, resumed.engine.stacks, strict=True):
        for one, other in ((old.a.blocks, new.a.blocks), (old.g.blocks, new.g.blocks)):
            assert other.dtype == torch.float32
            assert torch.equal(one, other)


def test_live_values_of_groups_are_saved() -> None:
    """Damping, learning rate and decay as they stood."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.3)
    optimizer.param_groups[0].update(lr=0.01, damping=0.7, weight_decay=0.2)
    resumed = THOR(mlp(), norm_control="graft", lr=0.3)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for key, value in {"lr": 0.01, "damping": 0.7, "weight_decay": 0.2}.items():
        assert resumed.param_groups[0][key] == value
