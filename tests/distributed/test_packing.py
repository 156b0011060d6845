"""Triangles, and what their rounding costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_thor.distributed.packing import (
    pack_triangles,
    packed_size,
    raise_diagonals,
    unpack_triangles,
)


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_a_packed_matrix_comes_back_bit_for_bit(size: int, blocks: int, matrices: int) -> None:
    half = torch.randn(matrices, blocks, size, size)
    symmetric = half + half.mT
    packed = pack_triangles(symmetric)
    assert packed.shape == (matrices, blocks, packed_size(size))
    assert torch.equal(unpack_triangles(packed, size), symmetric)


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("size", [9, 72, 128])
def test_a_rounded_singular_factor_stays_positive(size: int, rank: int) -> None:
    rows = torch.randn(20, rank, size, dtype=torch.float64) * torch.logspace(-2, 2, size)
    factor = rows.mT @ rows
    rounded = (factor / 2).bfloat16().double() * 2  # as sent, and as the sum is sent
    scale = torch.linalg.vector_norm(rows, dim=1).reciprocal()
    raised = raise_diagonals(rounded, torch.bfloat16)
    unit = raised * scale.unsqueeze(1) * scale.unsqueeze(2)
    assert torch.linalg.eigvalsh(unit).min() > 0
