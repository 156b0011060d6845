"""Block products, the shared factorization with its retry, and EKFAC's basis under a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import gradient_matrices, half_square
from oracle import blocks_only, ekfac_direction, factors, observe
from torch_thor import Damping, Preconditioner, Refresh, Statistics
from torch_thor.linalg.factorize import Factorization, multiply_left, multiply_right, solve
from torch_thor.linalg.factorize import factorize as factorize_by
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from torch_thor.linalg.factorize import Kernel

BATCH = 2


def factorize(jobs: list[Factorization], kernel: Kernel) -> list[list[bool]]:
    success = factorize_by(jobs, lambda stacks: [solve(stack, kernel) for stack in stacks])
    return [success[job] for job in jobs]


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


def kernel_that_fails(where: torch.dtype, marked: float) -> Kernel:
    """Doubles matrices, but fails for those whose first entry is ``marked``, in one dtype."""

    def kernel(matrices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        bad = (matrices[:, 0, 0] == marked) & (matrices.dtype == where)
        return (torch.where(bad[:, None, None], torch.nan, 2 * matrices),), ~bad

    return kernel


def jobs_of(values: list[list[float]]) -> list[Factorization]:
    """One job per list, one layer of one 2×2 block per value; the targets hold -1."""
    jobs = []
    for column in values:
        matrices = torch.stack([torch.full((1, 1, 2, 2), value) for value in column])
        jobs.append(
            Factorization(matrices, (torch.full_like(matrices, -1),), list(range(len(column))))
        )
    return jobs


def test_what_fails_in_float32_is_tried_again_in_float64() -> None:
    """Case 22."""
    jobs = jobs_of([[1.0, 5.0], [2.0]])
    assert factorize(jobs, kernel_that_fails(torch.float32, marked=5.0)) == [[True, True], [True]]
    assert [job.targets[0][:, 0, 0, 0, 0].tolist() for job in jobs] == [[2.0, 10.0], [4.0]]


def test_what_fails_in_float64_too_keeps_its_last_result_and_spoils_no_other() -> None:
    """Case 22."""

    def kernel(matrices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        bad = matrices[:, 0, 0] == 5.0
        return (torch.where(bad[:, None, None], torch.nan, 2 * matrices),), ~bad

    jobs = jobs_of([[1.0, 5.0], [2.0]])
    assert factorize(jobs, kernel) == [[True, False], [True]]
    assert [job.targets[0][:, 0, 0, 0, 0].tolist() for job in jobs] == [[2.0, -1.0], [4.0]]


def test_a_layer_is_stored_with_all_its_blocks_or_not_at_all() -> None:
    """Case 22: half a layer in a new basis and half in the old one would be neither."""
    matrices = torch.ones(1, 1, 2, 2, 2)
    matrices[0, 0, 1] = 5.0
    job = Factorization(matrices, (torch.full_like(matrices, -1),), [0])

    def kernel(stack: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return (2 * stack,), stack[:, 0, 0] != 5.0

    assert factorize([job], kernel) == [[False]]
    assert job.targets[0].unique().tolist() == [-1.0]


def test_one_kernel_call_per_block_size() -> None:
    calls = []

    def kernel(matrices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        calls.append(tuple(matrices.shape))
        return (matrices,), torch.ones(len(matrices), dtype=torch.bool)

    three = torch.ones(2, 1, 1, 3, 3)
    factorize(
        [*jobs_of([[1.0], [2.0, 3.0]]), Factorization(three, (three.clone(),), [0, 1])], kernel
    )
    assert sorted(calls) == [(2, 3, 3), (3, 2, 2)]


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
