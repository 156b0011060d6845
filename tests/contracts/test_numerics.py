"""Promise: bad numbers are damped, retried, survived and named; they never poison the state."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from helpers import (
    AT_EVERY_STEP,
    assert_same_weights,
    convnet,
    data,
    gradient_of,
    gradients,
    mean_half_square,
    mlp,
    train,
    weights,
)
from torch_thor import (
    THOR,
    CurvatureError,
    CurvatureWarning,
    Damping,
    NonFiniteGradientError,
    Preconditioner,
    Refresh,
    Statistics,
)

EVERY_STEP: dict[str, Any] = {"factor_interval": 1, "refresh": Refresh(stagger=False)}


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_rank_deficient_and_badly_scaled_factors_give_finite_steps(
    power: float, scale: float
) -> None:
    """Case 22: one sample, so every factor has rank one."""
    model = convnet()
    preconditioner = Preconditioner(
        model, power=power, damping=Damping(1e-4, "relative"), **EVERY_STEP
    )
    inputs, targets = data(1, 2, 6, 6)
    (scale * mean_half_square(model(inputs), targets)).backward()
    # The inverse of a factor of 1e-36 is beyond float32: such a layer keeps its gradient.
    beyond = power == 1.0 and scale < 1e-15
    with pytest.warns(CurvatureWarning) if beyond else contextlib.nullcontext():
        preconditioner.step()
    for name, parameter in model.named_parameters():
        gradient = gradient_of(parameter)
        assert gradient.isfinite().all(), name
        assert gradient.count_nonzero() > 0, name


def broken(matrices: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    """A factorization that fails for every matrix."""
    return torch.full_like(matrices, torch.nan), torch.zeros(matrices.shape[:-2], dtype=torch.bool)


def test_a_failed_factorization_keeps_the_last_inverse_and_names_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 22."""
    inputs, targets = data(8)
    model = nn.Sequential(nn.Linear(5, 3))
    preconditioner = Preconditioner(model, **EVERY_STEP)
    mean_half_square(model(inputs), targets).backward()
    raw = gradients(model)
    preconditioner.step()
    good = gradients(model)
    monkeypatch.setattr("torch_thor.linalg.inverse_root", broken)
    for parameter, gradient in zip(model.parameters(), raw, strict=True):
        parameter.grad = gradient.clone()
    model.zero_grad()
    mean_half_square(model(inputs), targets).backward()
    with pytest.warns(CurvatureWarning, match="'0'"):
        preconditioner.step()
    assert all(map(torch.equal, gradients(model), good))


def test_repeated_failure_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 22."""
    monkeypatch.setattr("torch_thor.linalg.inverse_root", broken)
    model = nn.Sequential(nn.Linear(5, 3))
    preconditioner = Preconditioner(
        model, factor_interval=1, refresh=Refresh(stagger=False, tolerated_failures=2)
    )
    inputs, targets = data(8)
    for _ in range(2):
        mean_half_square(model(inputs), targets).backward()
        with pytest.warns(CurvatureWarning):
            preconditioner.step()
    mean_half_square(model(inputs), targets).backward()
    with pytest.raises(CurvatureError, match="'0'"):
        preconditioner.step()


def test_a_matrix_that_float32_cannot_factorize_is_retried_in_float64() -> None:
    """Case 22: damping below float32's resolution of the factor."""
    model = nn.Linear(16, 3, bias=False)
    preconditioner = Preconditioner(
        model,
        power=1.0,
        split=None,
        damping=Damping(1e-10, "relative"),
        statistics=Statistics(decay=0.0, rows=None),
        **EVERY_STEP,
    )
    inputs = torch.randn(4, 16)  # rank 4 of 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)  # saying so is allowed
        mean_half_square(model(inputs), torch.randn(4, 3)).backward()
        preconditioner.step()
    assert gradient_of(model.weight).isfinite().all()


@pytest.mark.parametrize("mode", ["both", "sqrt", "pi", "relative"])
@pytest.mark.parametrize("control", [None, "graft", "rms", "kl_clip"])
def test_an_all_zero_first_gradient_gives_a_finite_step(mode: Any, control: Any) -> None:
    """Case 23."""
    model = mlp()
    optimizer = THOR(
        model, lr=0.1, damping=Damping(0.1, mode), norm_control=control, **AT_EVERY_STEP
    )
    inputs, targets = data(8)
    (0.0 * mean_half_square(model(inputs), targets)).backward()
    optimizer.step()
    train(model, optimizer, [(inputs, targets)] * 3)
    assert all(one.isfinite().all() for one in weights(model))


def test_an_all_zero_input_gives_a_finite_step() -> None:
    """Case 23: tr A = 0 without a bias."""
    model = mlp(bias=False)
    optimizer = THOR(model, norm_control="graft", lr=0.1, **AT_EVERY_STEP)
    _, targets = data(8)
    train(model, optimizer, [(torch.zeros(8, 5), targets)] * 2 + [data(8)])
    assert all(one.isfinite().all() for one in weights(model))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["input", "loss", "one gradient"])
def test_a_step_with_bad_numbers_is_skipped_without_a_trace(value: float, where: str) -> None:
    """Case 24: the run goes on as if the bad batch had never been there."""
    batches = [data(8) for _ in range(4)]
    models = [mlp(), mlp()]
    models[1].load_state_dict(models[0].state_dict())
    clean, hit = (THOR(model, norm_control="graft", lr=0.1, **AT_EVERY_STEP) for model in models)
    train(models[0], clean, batches)
    train(models[1], hit, batches[:2])
    hit.zero_grad()
    inputs, targets = data(8)
    if where == "input":
        inputs[0, 0] = value
    loss = mean_half_square(models[1](inputs), targets)
    (loss * value if where == "loss" else loss).backward()
    if where == "one gradient":
        gradient_of(models[1][2].bias)[0] = value
    hit.step()
    train(models[1], hit, batches[2:])
    assert_same_weights(*models)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["first batch", "later batch"])
def test_bad_numbers_never_reach_a_running_average(where: str, value: float) -> None:
    """Case 24: a preconditioner alone does not look at gradients, but guards its factors."""
    batches = [data(8) for _ in range(3)]
    bad = data(8)
    bad[0][0, 0] = value
    found = []
    for disturbed in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 3))
        preconditioner = Preconditioner(model, **EVERY_STEP)
        run = list(batches)
        if disturbed:
            run.insert(0 if where == "first batch" else 2, bad)
        for inputs, targets in run:
            model.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            preconditioner.step()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_with_bad_numbers_raises_where_asked_to(value: float) -> None:
    """Case 24."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", lr=0.1, refresh=Refresh(on_nonfinite="raise"))
    train(model, optimizer, [data(8)])
    before = weights(model)
    inputs, targets = data(8)
    (mean_half_square(model(inputs), targets) * value).backward()
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()
    for old, new in zip(before, weights(model), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_have_float32_statistics(dtype: torch.dtype) -> None:
    """Case 25."""
    model = mlp().to(dtype)
    preconditioner = Preconditioner(model, **EVERY_STEP)
    inputs, targets = data(8, dtype=dtype)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    for gradient in gradients(model):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    factors = [
        stack.blocks for layers in preconditioner.engine.stacks for stack in (layers.a, layers.g)
    ]
    assert {blocks.dtype for blocks in factors} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_autocast_trains(build: Any, dtype: torch.dtype) -> None:
    """Case 25."""
    model = build()
    optimizer = THOR(model, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
    shape = (5,) if build is mlp else (2, 6, 6)
    inputs, targets = data(32, *shape)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast(torch.get_default_device().type, dtype=dtype):
            outputs = model(inputs)
        loss = mean_half_square(outputs.float(), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(one.isfinite().all() for one in weights(model))


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("mode", ["both", "relative"])
def test_inversion_and_damping_leave_stored_factors_bitwise_unchanged(
    mode: Literal["both", "relative"], power: float
) -> None:
    """Case 26."""
    states = []
    for inverse_interval in (1, 1000):
        torch.manual_seed(2)
        model = mlp()
        preconditioner = Preconditioner(
            model,
            damping=Damping(0.1, mode),
            power=power,
            factor_interval=1,
            inverse_interval=inverse_interval,
            refresh=Refresh(stagger=False),
        )
        for _ in range(4):
            inputs, targets = data(8)
            model.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            preconditioner.step()
        states.append([(s.a.blocks, s.g.blocks) for s in preconditioner.engine.stacks])
    for often, once in zip(*states, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(often, once, strict=True))


def test_power_one_never_calls_an_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 27: Cholesky, because batched eigh is slow or broken on several CUDA builds."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an eigendecomposition on the path of power 1")

    for name in ("eigh", "eigvalsh", "svd", "eig"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    model = convnet()
    optimizer = THOR(model, norm_control="graft", lr=0.1, power=1.0, **AT_EVERY_STEP)
    train(model, optimizer, [data(8, 2, 6, 6) for _ in range(2)])
