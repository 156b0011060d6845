"""Batched functions on stacks of symmetric matrices, against one matrix at a time in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import blocks_only, inverse_power
from torch_thor import linalg

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def spd(*batch: int, size: int, floor: float = 0.1) -> Tensor:
    """Random positive definite matrices whose eigenvalues are at least ``floor``."""
    root = torch.randn(*batch, size, size, dtype=torch.float64)
    return root @ root.mT / size + floor * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_roots_of_a_stack_are_the_roots_of_its_matrices(
    power: float, batch: tuple[int, ...]
) -> None:
    stack = spd(*batch, size=7)
    roots, good = linalg.inverse_root(stack, power)
    assert roots.shape == stack.shape
    assert good.shape == batch
    assert good.all()
    flat = stack.reshape(-1, 7, 7)
    expected = torch.stack([inverse_power(one, power) for one in flat])
    torch.testing.assert_close(roots.reshape(-1, 7, 7), expected)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_one_bad_matrix_is_marked_and_spoils_no_other(power: float) -> None:
    stack = spd(4, size=5)
    stack[1] = -torch.eye(5)
    stack[2, 0, 0] = torch.nan
    roots, good = linalg.inverse_root(stack, power)
    assert good.tolist() == [True, False, False, True]
    for index in (0, 3):
        torch.testing.assert_close(roots[index], inverse_power(stack[index], power))


def test_a_matrix_of_zeros_is_marked_too() -> None:
    """Its Cholesky triangle has zeros on the diagonal, which the next step would refuse."""
    assert linalg.inverse_root(torch.stack([torch.zeros(3, 3), torch.eye(3)]), 1.0)[1].tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_an_asymmetric_rounding_error_does_not_matter(power: float) -> None:
    stack = spd(2, size=6)
    tilted = stack + 1e-9 * torch.randn(2, 6, 6, dtype=torch.float64)
    roots, good = linalg.inverse_root(tilted, power)
    assert good.all()
    # the same matrices, but laid out otherwise, which may change the order of sums
    torch.testing.assert_close(roots, linalg.inverse_root(tilted.mT, power)[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: linalg.inverse_root(m, 1.0),
        lambda m: linalg.inverse_root(m, 0.5),
        lambda m: linalg.inverse_root(m.float(), 0.5),
        linalg.symmetrize,
        linalg.eigh,
        lambda m: linalg.add_to_diagonal(m, torch.ones(3, dtype=m.dtype)),
        lambda m: linalg.diagonal_blocks(m, 2),
        linalg.largest_eigenvalue,
    ],
)
def test_no_function_changes_its_input(call: Callable[[Tensor], object]) -> None:
    stack = spd(3, size=4)
    before = stack.clone()
    call(stack)
    assert torch.equal(stack, before)


def test_the_shift_goes_on_each_diagonal() -> None:
    shifted = linalg.add_to_diagonal(torch.zeros(2, 3, 3), torch.tensor([1.0, 2.0]))
    assert torch.equal(shifted, torch.stack([torch.eye(3), 2 * torch.eye(3)]))


def test_eigh_gives_nan_for_nan_and_leaves_the_others_alone() -> None:
    stack = spd(2, size=3)
    stack[0, 0, 0] = torch.inf
    values, vectors = linalg.eigh(stack)
    assert values[0].isnan().all()
    torch.testing.assert_close(vectors[1] @ values[1].diag() @ vectors[1].mT, stack[1])


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_diagonal_blocks_are_those_of_the_whole_product(
    matrices: int, count: int, block: int, rows: int
) -> None:
    table = torch.randn(matrices, rows, count * block, dtype=torch.float64)
    found = linalg.diagonal_blocks(table, block)
    for matrix in range(matrices):
        whole = blocks_only(table[matrix].T @ table[matrix], block)
        torch.testing.assert_close(torch.block_diag(*found[matrix]), whole)


def test_the_largest_eigenvalue_of_a_gram_matrix() -> None:
    rows = torch.randn(3, 20, 6, dtype=torch.float64) * torch.tensor([5.0, 1, 1, 1, 1, 1])
    exact = torch.linalg.eigvalsh(rows.mT @ rows)[:, -1]
    torch.testing.assert_close(linalg.largest_eigenvalue(rows), exact, rtol=1e-6, atol=0.0)
    assert linalg.largest_eigenvalue(torch.zeros(2, 3, 4)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_all_zeros_is_seen_however_small(dtype: torch.dtype) -> None:
    """Squares of some of these are zero."""
    zeros = torch.zeros(3, 40, dtype=dtype)
    tensors = [zeros]
    for value in (1e-30, -1e-30, torch.nan, -torch.inf):
        tensors.append(zeros.clone())
        tensors[-1][1, 7] = value
    assert linalg.are_nonzero(tensors).tolist() == [False, True, True, True, True]
    assert linalg.are_nonzero([-zeros, tensors[1][:, ::3]]).tolist() == [False, False]
