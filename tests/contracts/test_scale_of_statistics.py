"""Promise: the scale of the statistics does not depend on how the loss was reduced or cut up."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import Tensor, nn

from helpers import (
    EXACT,
    convnet,
    data,
    gradient_matrices,
    gradients,
    half_square,
    mean_half_square,
    mlp,
)
from oracle import damped, dense_fisher, direction, factors, inverse_power, observe, vector
from torch_thor import Damping, Preconditioner, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

Reduction = Literal["mean", "positions_mean", "sum"]
LITERAL: dict[str, Any] = {"damping": Damping(0.05, "both"), "split": None, "power": 1.0}


def preconditioner_of(model: nn.Module, reduction: Reduction = "mean", **options: Any) -> Any:
    statistics = Statistics(decay=0.0, rows=None, loss_reduction=reduction)
    return Preconditioner(model, **{**EXACT, "statistics": statistics, **LITERAL, **options})


@pytest.mark.parametrize("build", [mlp, convnet])
def test_mean_and_sum_losses_give_the_same_direction(build: Callable[[], nn.Module]) -> None:
    """Case 15."""
    shape = (5,) if build is mlp else (2, 6, 6)
    inputs, targets = data(8, *shape, dtype=torch.float64)
    start = build().double().state_dict()
    found = []
    losses: dict[Reduction, Callable[[Tensor, Tensor], Tensor]] = {
        "mean": mean_half_square,
        "sum": half_square,
    }
    for reduction, loss in losses.items():
        model = build().double()
        model.load_state_dict(start)
        preconditioner = preconditioner_of(model, reduction)
        loss(model(inputs), targets).backward()
        preconditioner.step()
        scale = len(inputs) if reduction == "sum" else 1
        found.append([gradient / scale for gradient in gradients(model)])
    torch.testing.assert_close(found[0], found[1])


def test_a_mean_over_samples_and_positions_counts_every_position() -> None:
    """Case 15: language models; the direction is that of N·T independent samples."""
    layer = nn.Linear(5, 3).double()
    inputs = torch.randn(4, 6, 5).double()
    targets = torch.randn(4, 6, 3).double()
    twin = nn.Linear(5, 3).double()
    twin.load_state_dict(layer.state_dict())
    sequences = preconditioner_of(layer, "positions_mean")
    (half_square(layer(inputs), targets) / 24).backward()
    sequences.step()
    samples = preconditioner_of(twin, "mean")
    mean_half_square(twin(inputs.flatten(0, 1)), targets.flatten(0, 1)).backward()
    samples.step()
    torch.testing.assert_close(gradients(layer), gradients(twin))

    seen = observe(layer, "", inputs, targets, half_square)[0]
    expected = direction(seen.mean_gradient / 6, *factors(seen, losses_per_sample=6), damping=0.05)
    torch.testing.assert_close(next(gradient_matrices(layer)), expected)


@pytest.mark.parametrize("build", [mlp, convnet])
@pytest.mark.parametrize("cuts", [(4, 4), (2, 2, 2, 2), (5, 3), (1,) * 8])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_equal_one_big_batch(
    build: Callable[[], nn.Module], cuts: tuple[int, ...], reduction: Reduction
) -> None:
    """Case 16 (one process): gradients accumulate, statistics too."""
    shape = (5,) if build is mlp else (2, 6, 6)
    inputs, targets = data(8, *shape, dtype=torch.float64)
    start = build().double().state_dict()
    found = []
    for sizes in ((8,), cuts):
        model = build().double()
        model.load_state_dict(start)
        preconditioner = preconditioner_of(model, reduction)
        for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
            value = half_square(model(x), y)
            (value / 8 if reduction == "mean" else value).backward()
        preconditioner.step()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1])


def test_one_sample_gives_the_exact_fisher() -> None:
    """Case 17: with one sample A ⊗ G is the empirical Fisher of a Linear layer."""
    model = mlp().double()
    inputs, targets = data(1, dtype=torch.float64)
    seen = observe(model, "0", inputs, targets, half_square)[0]
    A, G = factors(seen)
    fisher = dense_fisher(seen)
    torch.testing.assert_close(torch.kron(G, A), fisher)
    preconditioner = preconditioner_of(model, damping=Damping(1e-3, "both"))
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    expected = direction(seen.mean_gradient, A, G, damping=1e-3)
    torch.testing.assert_close(next(gradient_matrices(model[0])), expected, rtol=1e-6, atol=1e-6)


def test_independent_inputs_and_gradients_give_the_exact_fisher() -> None:
    """Case 17: many samples; the direction inverts the dense Fisher itself up to damping."""
    layer = nn.Linear(3, 2, bias=False).double()
    pairs = list(itertools.product(torch.randn(6, 3).double(), torch.randn(5, 2).double()))
    inputs, slopes = (torch.stack(list(side)) for side in zip(*pairs, strict=True))
    seen = observe(layer, "", inputs, slopes, lambda y, slope: (y * slope).sum())[0]
    preconditioner = preconditioner_of(layer, damping=Damping(1e-9, "both"))
    ((layer(inputs) * slopes).sum() / len(inputs)).backward()
    preconditioner.step()
    expected = torch.linalg.solve(dense_fisher(seen), vector(seen.mean_gradient)).reshape(2, 3)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["both", "sqrt", "pi", "relative"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_each_damping_mode_is_what_it_says(
    mode: Literal["both", "sqrt", "pi", "relative"], power: float
) -> None:
    """Case 18: one explicit option."""
    model = mlp().double()
    inputs, targets = data(8, dtype=torch.float64)
    seen = observe(model, "0", inputs, targets, half_square)[0]
    preconditioner = preconditioner_of(model, damping=Damping(0.3, mode), power=power)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    A, G = damped(*factors(seen), 0.3, mode)
    expected = inverse_power(G, power) @ seen.mean_gradient @ inverse_power(A, power)
    torch.testing.assert_close(next(gradient_matrices(model[0])), expected)
