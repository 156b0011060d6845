"""What the structures answer: one-hot rows against the same rows written out, and who asks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import torch_thor
from torch_thor import Geometry
from torch_thor.layers import adapter_for, read_matrices, write_matrices
from torch_thor.layers.geometry import DENSE, ONE_HOT, UNIT_WISE
from torch_thor.layers.rows import RowPlan
from torch_thor.linalg.partition import Partition

COLUMNS, OUTPUTS = 6, 3
EMBEDDING = Geometry(1, OUTPUTS, COLUMNS, bias=False, transposed=True, one_hot=True)
WRITTEN_OUT = Geometry(1, OUTPUTS, COLUMNS, bias=False, transposed=True)


@pytest.fixture
def tokens() -> Tensor:
    return torch.tensor([[0, 3, 3, -1, 5, -1, 3]])


def written_out(tokens: Tensor) -> Tensor:
    return one_hot(tokens.clamp_min(0), COLUMNS).double() * (tokens >= 0).unsqueeze(-1)


def test_traces_and_blocks_of_one_hot_rows(tokens: Tensor) -> None:
    dense, cut = written_out(tokens), Partition(COLUMNS, 1)
    wide = torch.float64
    assert torch.equal(ONE_HOT.trace(tokens, wide), DENSE.trace(dense, wide))
    assert torch.equal(ONE_HOT.blocks(tokens, cut, wide), DENSE.blocks(dense, cut, wide))


def test_moments_of_one_hot_rows(tokens: Tensor) -> None:
    gradients = torch.randn(1, tokens.shape[1], OUTPUTS, dtype=torch.float64)
    found, expected = (torch.ones(1, OUTPUTS, COLUMNS, dtype=torch.float64) for _ in range(2))
    ONE_HOT.add_moments(found, tokens, gradients, 2.0, lambda rows: rows)
    DENSE.add_moments(expected, written_out(tokens), gradients, 2.0, lambda rows: rows)
    torch.testing.assert_close(found, expected)


def test_one_hot_rows_are_left_out_and_put_in(tokens: Tensor) -> None:
    counted = torch.tensor([True, False, True, True, False, False, True])
    others = torch.full_like(tokens, 2)
    assert torch.equal(
        written_out(ONE_HOT.where(counted, tokens)), DENSE.where(counted, written_out(tokens))
    )
    assert torch.equal(
        written_out(ONE_HOT.where(counted, tokens, others)),
        DENSE.where(counted, written_out(tokens), written_out(others)),
    )


def test_rows_move_a_weight_exactly_if_their_gradient_is_not_zero(tokens: Tensor) -> None:
    gradients = torch.zeros(1, tokens.shape[1], OUTPUTS, dtype=torch.float64)
    gradients[0, 3] = 1.0  # a row of zeros
    for rows, geometry in ((tokens, EMBEDDING), (written_out(tokens), WRITTEN_OUT)):
        assert not geometry.structure.moves(geometry, rows, gradients)
        assert geometry.structure.moves(geometry, rows, gradients.roll(1, 1))


def test_a_gradient_of_the_bias_or_shift_alone_does_not_move_a_weight() -> None:
    with_bias = Geometry(1, 1, 1, bias=True)
    inputs = torch.tensor([[[0.0, 1.0]]])
    assert not DENSE.moves(with_bias, inputs, torch.ones(1, 1, 1))
    norm = Geometry(1, 2, 1, bias=False, unit_wise=True)
    assert not UNIT_WISE.moves(norm, torch.ones(1, 1, 1), torch.tensor([[[0.0, 1.0]]]))
    assert UNIT_WISE.moves(norm, torch.ones(1, 1, 1), torch.tensor([[[1.0, 0.0]]]))


def test_unit_wise_rows_are_the_gradients_of_each_sample() -> None:
    norm = nn.GroupNorm(1, 4).double()
    adapter = adapter_for(norm)
    assert adapter is not None
    inputs = torch.randn(3, 4, 5, dtype=torch.float64)
    output = norm(inputs)
    sensitivity = torch.randn_like(output)
    plan = RowPlan(*adapter.call_shape(norm, inputs, output))
    rows = adapter.input_rows(norm, inputs, plan, bias=True)
    slopes = adapter.output_rows(norm, sensitivity, plan)
    _, found = UNIT_WISE.call_rows(adapter.geometry(norm, bias=True), rows, slopes, plan)
    for sample in range(3):
        loss = (output[sample] * sensitivity[sample]).sum()
        scale, shift = torch.autograd.grad(loss, (norm.weight, norm.bias), retain_graph=True)
        torch.testing.assert_close(found[:, sample], torch.stack([scale, shift], dim=1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 4),
        nn.RMSNorm(4),
        nn.Embedding(5, 3),
        nn.ConvTranspose1d(4, 6, 3, groups=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_way_to_matrices_and_back_of_every_structure(layer: nn.Module) -> None:
    layer.to(torch.get_default_device())  # it was built before the device was known
    adapter, bias = adapter_for(layer), getattr(layer, "bias", None)
    assert adapter is not None
    geometry = adapter.geometry(layer, bias=bias is not None)
    weight = torch.randn_like(layer.get_parameter("weight"))
    values = None if bias is None else torch.randn_like(bias)
    matrices = torch.full((geometry.matrices, geometry.outputs, geometry.columns), torch.nan)
    write_matrices(geometry, matrices, weight, values)
    assert not matrices.isnan().any()
    weight_again, bias_again = read_matrices(geometry, matrices, weight)
    assert torch.equal(weight_again, weight)
    if bias_again is None or values is None:
        assert bias_again is values
    else:
        assert torch.equal(bias_again, values)


def test_only_a_geometry_says_which_structure_it_has() -> None:
    """A new structure is a class and the adapter that names it."""
    package = Path(torch_thor.__file__).parent
    asking = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("one_hot", "unit_wise")
    }
    assert asking == {"layers/geometry.py"}
