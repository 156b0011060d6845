"""Block products, and EKFAC's basis under a split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import gradient_matrices, half_square
from oracle import blocks_only, ekfac_direction, factors, observe
from torch_thor import Damping, Preconditioner, Refresh, Statistics
from torch_thor.linalg.factorize import multiply_left, multiply_right
from torch_thor.linalg.partition import Partition

BATCH = 2


def blocks_of(cut: Partition) -> tuple[Tensor, Tensor]:
    """Random blocks [BATCH, n, s, s], and the matrices [BATCH, size, size] that they make up."""
    blocks = torch.randn(BATCH, cut.count, cut.block, cut.block, dtype=torch.float64)
    whole = [torch.block_diag(*one)[: cut.size, : cut.size] for one in blocks]
    return blocks, torch.stack(whole)


@given(st.integers(1, 9), st.integers(1, 5), st.none() | st.integers(1, 10))
def test_products_with_blocks_are_products_with_the_block_diagonal_matrix(
    size: int, other: int, split: int | None
) -> None:
    cut = Partition.of(size, split)
    blocks, whole = blocks_of(cut)
    M = torch.randn(BATCH, size, other, dtype=torch.float64)
    torch.testing.assert_close(multiply_left(blocks, cut, M), whole @ M)
    torch.testing.assert_close(multiply_right(M.mT.contiguous(), cut, blocks), M.mT @ whole)
    torch.testing.assert_close(multiply_right(M.mT, cut, blocks), M.mT @ whole)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("split", [None, 2, 3, 4])
def test_eigenvalue_correction_inside_blocks(split: int | None, power: float) -> None:
    """Case 21, under a split: the basis is that of the blocks, the scalings are exact."""
    model = nn.Linear(4, 5).double()
    preconditioner = Preconditioner(
        model,
        damping=Damping(0.1, "both"),
        split=split,
        power=power,
        factor_interval=1,
        eigenvalue_correction=True,
        statistics=Statistics(decay=0.0, rows=None),
        refresh=Refresh(stagger=False),
    )
    inputs = torch.randn(16, 4).double()
    targets = torch.randn(16, 5).double()
    seen = observe(model, "", inputs, targets, half_square)[0]
    A, G = (blocks_only(factor, split) for factor in factors(seen))
    expected = ekfac_direction(seen, seen.mean_gradient, A, G, damping=0.1, power=power)
    (half_square(model(inputs), targets) / 16).backward()
    preconditioner.step()
    (found,) = gradient_matrices(model)
    torch.testing.assert_close(found, expected)
