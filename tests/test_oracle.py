"""The oracle against brute force: nothing else may rely on it before these hold."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from torch import nn

from helpers import draws
from oracle import (
    Observed,
    RunningAverage,
    blocks_only,
    conv_patches,
    damped,
    dense_fisher,
    direction,
    ekfac_direction,
    factors,
    grafted,
    inverse_power,
    kl_clip_factor,
    observe,
    relative_change,
    vector,
    with_rms,
)
from strategies import convolutions

if TYPE_CHECKING:
    from torch import Tensor

    from oracle.curvature import Damping

MODES: list[Damping] = ["both", "sqrt", "pi", "relative"]


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * ((outputs - targets) ** 2).sum()


def random_spd(size: int, seed: int = 0) -> Tensor:
    root = torch.randn(size, size + 2, dtype=torch.float64, generator=draws(seed))
    return root @ root.T / size


@given(convolutions())
def test_patches_times_weight_are_the_convolution(drawn: tuple[nn.Conv2d, Tensor]) -> None:
    layer, images = drawn
    expected = layer(images)[0].flatten(1)  # [out, positions]
    weights = layer.weight.flatten(1)
    if layer.bias is not None:
        weights = torch.cat([weights, layer.bias[:, None]], dim=1)
    outputs = [
        rows @ matrix.T
        for rows, matrix in zip(
            conv_patches(layer, images[0]), weights.chunk(layer.groups), strict=True
        )
    ]
    torch.testing.assert_close(torch.cat(outputs, dim=1).T, expected)


@given(convolutions())
def test_rows_rebuild_the_weight_gradient_of_autograd(drawn: tuple[nn.Conv2d, Tensor]) -> None:
    layer, images = drawn
    targets = torch.zeros(1, dtype=torch.float64)
    for seen in observe(layer, "", images, targets, lambda y, _: (y**2).sum()):
        rebuilt = seen.output_gradients[0].T @ seen.inputs[0]
        torch.testing.assert_close(rebuilt, seen.weight_gradients[0])


def test_weight_gradients_match_finite_differences() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(2, 3).double(), torch.randn(2, 2).double()
    seen = observe(model, "0", inputs, targets, half_square)[0]
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    for sample, (row, column) in itertools.product(range(2), [(0, 0), (3, 2), (1, 3)]):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                target = layer.weight[row] if column < 3 else layer.bias
                index = column if column < 3 else row
                target[index] += sign * 1e-6
                losses.append(half_square(model(inputs[sample : sample + 1]), targets[sample]))
                target[index] -= sign * 1e-6
        slope = float(losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(float(seen.weight_gradients[sample][row, column]), rel=1e-6)


def test_a_module_called_twice_is_seen_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    seen = observe(Twice(), "layer", torch.randn(2, 3), torch.randn(2, 3), half_square)[0]
    assert [len(rows) for rows in seen.inputs] == [2, 2]
    rebuilt = seen.output_gradients[1].T @ seen.inputs[1]
    torch.testing.assert_close(rebuilt, seen.weight_gradients[1])


def test_kfac_is_exact_for_one_sample_of_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    seen = observe(model, "0", torch.randn(1, 3), torch.randn(1, 2), half_square)[0]
    A, G = factors(seen)
    torch.testing.assert_close(torch.kron(G, A), dense_fisher(seen))


@pytest.mark.parametrize("bias", [False, True])
def test_kfac_is_exact_where_input_and_gradient_are_independent(bias: bool) -> None:
    # Every input meets every target direction, and the loss is linear: g does not depend on a.
    layer = nn.Linear(3, 2, bias=bias)
    some_inputs, some_gradients = torch.randn(4, 3), torch.randn(5, 2)
    pairs = list(itertools.product(some_inputs, some_gradients))
    inputs, slopes = (torch.stack(list(side)) for side in zip(*pairs, strict=True))
    seen = observe(layer, "", inputs, slopes, lambda y, slope: (y * slope).sum())[0]
    A, G = factors(seen)
    torch.testing.assert_close(torch.kron(G, A), dense_fisher(seen))


def test_a_one_by_one_convolution_is_a_linear_layer_over_positions() -> None:
    conv = nn.Conv2d(3, 2, 1).double()
    linear = nn.Linear(3, 2).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    images, targets = torch.randn(4, 3, 2, 5).double(), torch.randn(4, 2, 2, 5).double()
    one = factors(observe(conv, "", images, targets, half_square)[0])
    rows, wanted = images.permute(0, 2, 3, 1), targets.permute(0, 2, 3, 1)
    other = factors(observe(linear, "", rows, wanted, half_square)[0])
    torch.testing.assert_close(one, other)


def test_reduce_takes_the_mean_input_and_the_summed_gradient() -> None:
    seen = Observed(
        inputs=[torch.tensor([[1.0, 1.0], [3.0, 1.0]]).double()],
        output_gradients=[torch.tensor([[1.0], [2.0]]).double()],
        weight_gradients=[],
    )
    A, G = factors(seen, "reduce")
    assert A.tolist() == [[4.0, 2.0], [2.0, 1.0]]
    assert G.tolist() == [[9.0]]
    A, G = factors(seen)
    assert A.tolist() == [[5.0, 2.0], [2.0, 1.0]]
    assert G.tolist() == [[5.0]]


def test_the_kronecker_direction_is_the_two_sided_product() -> None:
    A, G, gradient = random_spd(5), random_spd(3, 1), torch.randn(3, 5).double()
    eye_a, eye_g = torch.eye(5).double(), torch.eye(3).double()
    expected = torch.linalg.solve(
        G + 0.1 * eye_g, torch.linalg.solve(A + 0.1 * eye_a, gradient.T).T
    )
    torch.testing.assert_close(direction(gradient, A, G, damping=0.1), expected)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_inverse_power_undoes_itself(power: float) -> None:
    M = random_spd(6) + 0.1 * torch.eye(6).double()
    root = inverse_power(M, power)
    times = round(1 / power)
    whole = torch.linalg.matrix_power(root, times) @ M
    torch.testing.assert_close(whole, torch.eye(6).double())


def test_the_half_power_of_a_kronecker_product_is_the_product_of_half_powers() -> None:
    A, G, gradient = random_spd(4), random_spd(3, 1), torch.randn(3, 4).double()
    A1, G1 = damped(A, G, 0.2, "both")
    expected = inverse_power(G1, 0.5) @ gradient @ inverse_power(A1, 0.5)
    torch.testing.assert_close(direction(gradient, A, G, damping=0.2, power=0.5), expected)


def test_blocks_are_cut_in_order_with_a_ragged_tail() -> None:
    matrix = torch.arange(1.0, 26.0).reshape(5, 5).double()
    kept = blocks_only(matrix, 2)
    assert kept.tolist() == [
        [1, 2, 0, 0, 0],
        [6, 7, 0, 0, 0],
        [0, 0, 13, 14, 0],
        [0, 0, 18, 19, 0],
        [0, 0, 0, 0, 25],
    ]
    # at most 4 rows: two blocks, as equal as can be, not four rows and one left over
    assert torch.equal(blocks_only(matrix, 4), blocks_only(matrix, 3))
    assert blocks_only(matrix, 3).count_nonzero() == 9 + 4
    assert torch.equal(blocks_only(matrix, 5), matrix)
    assert torch.equal(blocks_only(matrix, None), matrix)


def test_each_damping_mode_adds_what_its_formula_says() -> None:
    A, G = torch.diag(torch.tensor([1.0, 7.0])).double(), torch.diag(torch.tensor([1.0])).double()
    added = {
        mode: [float((after - before)[0, 0]) for before, after in zip((A, G), pair, strict=True)]
        for mode in MODES
        for pair in [damped(A, G, 0.04, mode)]
    }
    # mean eigenvalues: 4 and 1, hence pi = 2
    assert added["both"] == pytest.approx([0.04, 0.04])
    assert added["sqrt"] == pytest.approx([0.2, 0.2])
    assert added["pi"] == pytest.approx([0.4, 0.1])
    assert added["relative"] == pytest.approx([0.16, 0.04])


def test_the_running_average_is_unbiased_and_forgets_geometrically() -> None:
    average = RunningAverage(0.5)
    ones = torch.ones(2, 2).double()
    assert torch.equal(average.add(3 * ones), 3 * ones)
    assert torch.equal(average.add(3 * ones), 3 * ones)
    # weights 1/4, 1/2, 1 over 3, 3, 10
    torch.testing.assert_close(average.add(10 * ones), (0.75 + 1.5 + 10) / 1.75 * ones)
    assert torch.equal(RunningAverage(0.0).add(ones), ones)


def test_the_trace_change_by_hand() -> None:
    A, G = torch.diag(torch.tensor([1.0, 2.0])).double(), torch.diag(torch.tensor([4.0])).double()
    # tr(A ⊗ G) = 3 · 4 = 12, plus λ for each of the 2 · 1 diagonal entries
    assert relative_change((A, G), (2 * A, G), 0.0) == pytest.approx(1.0)
    assert relative_change((A, G), (2 * A, G), 0.5) == pytest.approx(12 / 13)
    assert relative_change((A, G), (A / 2, G), 0.0) == pytest.approx(0.5)


def test_norm_control_by_hand() -> None:
    step = torch.tensor([[3.0, 4.0]]).double()
    assert kl_clip_factor([step], [step], lr=0.1, kl=1.0) == 1.0
    assert kl_clip_factor([step], [step], lr=2.0, kl=1.0) == pytest.approx(math.sqrt(1 / 100))
    assert kl_clip_factor([0 * step], [step], lr=2.0, kl=1.0) == 1.0
    assert grafted(step, torch.tensor([[0.0, 10.0]])).tolist() == [[6.0, 8.0]]
    torch.testing.assert_close(with_rms(step, 1.0).square().mean(), torch.tensor(1.0).double())


def test_ekfac_is_kfac_where_kfac_is_exact() -> None:
    layer = nn.Linear(3, 2, bias=False)
    pairs = list(itertools.product(torch.randn(4, 3), torch.randn(5, 2)))
    inputs, slopes = (torch.stack(list(side)) for side in zip(*pairs, strict=True))
    seen = observe(layer, "", inputs, slopes, lambda y, slope: (y * slope).sum())[0]
    A, G = factors(seen)
    whole = dense_fisher(seen) + 0.1 * torch.eye(6).double()
    expected = torch.linalg.solve(whole, vector(seen.mean_gradient)).reshape(2, 3)
    found = ekfac_direction(seen, seen.mean_gradient, A, G, damping=0.1)
    torch.testing.assert_close(found, expected)
