"""Geometry of the layer types: rows and matrices against patches cut out one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from oracle import conv_patches, linear_rows
from strategies import convolutions, linears
from torch_thor.layers import Geometry, adapter_for, read_matrices, write_matrices
from torch_thor.layers.rows import RowPlan, plan_rows

SAMPLES = 3


def rows_of(layer: nn.Module, inputs: Tensor, plan: RowPlan | None = None) -> tuple[Tensor, Tensor]:
    """The adapter's (a, g) rows for the gradient of an output that is its own gradient."""
    adapter = adapter_for(layer)
    assert adapter is not None
    output = layer(inputs)
    samples, positions = adapter.call_shape(layer, inputs, output)
    plan = plan or plan_rows(samples, positions, None, reduce=False, seed=0)
    a = adapter.input_rows(layer, inputs, plan, bias=layer.bias is not None)
    return a, adapter.output_rows(layer, output.detach(), plan)


@given(convolutions(SAMPLES))
def test_convolution_rows_are_the_patches_of_every_position(
    drawn: tuple[nn.Conv2d, Tensor],
) -> None:
    layer, images = drawn
    patches = [conv_patches(layer, image) for image in images]
    expected = torch.stack(
        [torch.cat([one[group] for one in patches]) for group in range(layer.groups)]
    )
    a, g = rows_of(layer, images)
    assert torch.equal(a, expected)
    # g is the output itself here, so it must equal rows times weights, row by row
    assert layer.bias is None or len(layer.bias) == layer.out_channels
    matrices = matrices_of(adapter_geometry(layer), layer.weight.detach(), layer.bias)
    torch.testing.assert_close(a @ matrices.mT, g)


@given(linears(SAMPLES))
def test_linear_rows_are_the_inputs_of_every_position(drawn: tuple[nn.Linear, Tensor]) -> None:
    layer, inputs = drawn
    a, g = rows_of(layer, inputs)
    assert torch.equal(a, torch.cat([linear_rows(layer, one) for one in inputs])[None])
    assert torch.equal(g, layer(inputs).reshape(1, -1, layer.out_features))


def matrices_of(geometry: Geometry, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (geometry.matrices, geometry.outputs, geometry.columns)
    out = torch.full(shape, torch.nan, dtype=weight.dtype)
    write_matrices(geometry, out, weight, None if bias is None else bias.detach())
    return out


def adapter_geometry(layer: nn.Module) -> Geometry:
    adapter = adapter_for(layer)
    assert adapter is not None
    return adapter.geometry(layer, bias=layer.bias is not None)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@given(drawn=convolutions() | linears())
def test_the_way_to_matrices_and_back_changes_nothing(
    drawn: tuple[nn.Conv2d | nn.Linear, Tensor], order: torch.memory_format
) -> None:
    layer = drawn[0]
    geometry = adapter_geometry(layer)
    weight = torch.randn_like(layer.weight)
    if weight.dim() == 4:
        weight = weight.to(memory_format=order)
    bias = None if layer.bias is None else torch.randn_like(layer.bias)
    matrices = matrices_of(geometry, weight, bias)
    assert torch.equal(matrices[..., : geometry.inputs].flatten(0, 1), weight.flatten(1))
    weight_again, bias_again = read_matrices(geometry, matrices, weight)
    assert torch.equal(weight_again, weight)
    assert (bias is None) == (bias_again is None)
    if bias is not None:
        assert bias_again is not None
        assert torch.equal(bias_again, bias)


def test_a_missing_bias_gradient_counts_as_zero() -> None:
    layer = nn.Linear(3, 2)
    matrices = matrices_of(adapter_geometry(layer), torch.randn(2, 3), None)
    assert matrices[0, :, -1].tolist() == [0.0, 0.0]


@given(convolutions(SAMPLES) | linears(SAMPLES), st.integers(1, 12), st.integers(0, 5))
def test_a_row_budget_takes_matching_rows_of_both_sides(
    drawn: tuple[nn.Module, Tensor], budget: int, seed: int
) -> None:
    layer, inputs = drawn
    all_a, all_g = rows_of(layer, inputs)
    positions = all_a.shape[1] // SAMPLES
    plan = plan_rows(SAMPLES, positions, budget, reduce=False, seed=seed)
    a, g = rows_of(layer, inputs, plan)
    taken = range(SAMPLES * positions) if plan.index is None else plan.index.tolist()
    assert torch.equal(a, all_a[:, list(taken)])
    assert torch.equal(g, all_g[:, list(taken)])
    assert plan.scale == pytest.approx(SAMPLES * positions / a.shape[1])


@given(convolutions(SAMPLES) | linears(SAMPLES))
def test_reduce_averages_inputs_and_sums_gradients_over_positions(
    drawn: tuple[nn.Module, Tensor],
) -> None:
    layer, inputs = drawn
    all_a, all_g = rows_of(layer, inputs)
    positions = all_a.shape[1] // SAMPLES
    plan = plan_rows(SAMPLES, positions, 1, reduce=True, seed=0)
    a, g = rows_of(layer, inputs, plan)
    per_sample = (len(all_a), SAMPLES, positions, -1)
    torch.testing.assert_close(a, all_a.reshape(per_sample).mean(2))
    torch.testing.assert_close(g, all_g.reshape(per_sample).sum(2))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_of_other_dimensions(dimensions: int) -> None:
    kind = nn.Conv1d if dimensions == 1 else nn.Conv3d
    layer = kind(4, 6, 2, stride=2, padding=1, groups=2).double()
    inputs = torch.randn(2, 4, *[4] * dimensions).double()
    patches = [conv_patches(layer, one) for one in inputs]
    expected = torch.stack([torch.cat([one[group] for one in patches]) for group in range(2)])
    assert torch.equal(rows_of(layer, inputs)[0], expected)


def test_an_unbatched_image_is_one_sample() -> None:
    layer = nn.Conv2d(2, 3, 2)
    image = torch.randn(2, 4, 4)
    one, batch = rows_of(layer, image), rows_of(layer, image[None])
    assert torch.equal(one[0], batch[0])
    assert torch.equal(one[1], batch[1])


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
            return 2 * super().forward(input)

    assert adapter_for(Scaled(2, 2)) is None
    assert adapter_for(nn.Bilinear(2, 2, 2)) is None


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 60), st.integers(0, 100))
def test_a_plan_takes_distinct_rows_and_as_many_samples_as_it_can(
    samples: int, positions: int, budget: int, seed: int
) -> None:
    plan = plan_rows(samples, positions, budget, reduce=False, seed=seed)
    again = plan_rows.__wrapped__(samples, positions, budget, reduce=False, seed=seed)
    if plan.index is None:
        assert samples * positions <= budget
        return
    assert again.index is not None
    taken = plan.index.tolist()
    assert taken == again.index.tolist()
    assert len(set(taken)) == len(taken) <= budget
    assert all(0 <= row < samples * positions for row in taken)
    assert len({row // positions for row in taken}) == min(samples, budget)
    assert 2 * len(taken) > min(budget, samples * positions)


def test_every_row_is_taken_equally_often() -> None:
    samples, positions, budget, draws = 4, 5, 6, 4000
    counts = torch.zeros(samples * positions)
    for seed in range(draws):
        index = plan_rows.__wrapped__(samples, positions, budget, reduce=False, seed=seed).index
        counts[index] += 1
    # 4 of 20 rows a draw (one position of each sample): expected 800, standard deviation 25
    assert all(abs(count - draws / 5) < 130 for count in counts.tolist())
    for first, second in itertools.pairwise(range(3)):
        one, other = (
            plan_rows(samples, positions, budget, reduce=False, seed=s).index
            for s in (first, second)
        )
        assert one is not None
        assert other is not None
        assert not torch.equal(one, other)
