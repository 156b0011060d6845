"""Block-diagonal covariances and their running averages, against whole matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import RunningAverage, blocks_only
from torch_thor.capture.statistics import FactorBatch
from torch_thor.curvature.factors import FactorStack, kept_share
from torch_thor.linalg.partition import Partition

MATRICES = 2


def batch_of(size: int, rows: int = 6, calls: int = 1) -> FactorBatch:
    tables = tuple(torch.randn(MATRICES, rows, size, dtype=torch.float64) for _ in range(calls))
    return FactorBatch(tables, tuple(1.0 + call for call in range(calls)), 1 / 3, 1.0)


def fold(stack: FactorStack, slot: int, batch: FactorBatch, keep: float) -> None:
    dtype = stack.blocks.dtype
    stack.fold(slot, batch.blocks(stack.partition, dtype), batch.trace(dtype), keep)


def whole(batch: FactorBatch, matrix: int) -> torch.Tensor:
    """The factor with every entry, summed over calls."""
    parts = [
        weight * rows[matrix].T @ rows[matrix]
        for rows, weight in zip(batch.rows, batch.weights, strict=True)
    ]
    return batch.scale * torch.stack(parts).sum(0)


def as_matrix(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """[n, s, s] as one matrix, without its padding."""
    return torch.block_diag(*blocks)[:size, :size]


@given(st.integers(1, 9), st.none() | st.integers(1, 10), st.integers(1, 3))
def test_blocks_are_the_diagonal_blocks_of_the_factor(
    size: int, split: int | None, calls: int
) -> None:
    batch, cut = batch_of(size, calls=calls), Partition.of(size, split)
    blocks = batch.blocks(cut, torch.float64)
    assert blocks.shape == (MATRICES, cut.count, cut.block, cut.block)
    for matrix in range(MATRICES):
        expected = blocks_only(whole(batch, matrix), split)
        torch.testing.assert_close(as_matrix(blocks[matrix], size), expected)


@given(st.integers(1, 9), st.integers(1, 3))
def test_the_trace_needs_no_matrix(size: int, calls: int) -> None:
    batch = batch_of(size, calls=calls)
    expected = torch.stack([whole(batch, matrix).trace() for matrix in range(MATRICES)])
    torch.testing.assert_close(batch.trace(torch.float64), expected)


@pytest.mark.parametrize("split", [None, 2])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_the_running_average_is_unbiased_from_the_first_batch(
    decay: float, split: int | None
) -> None:
    size = 5
    stack = FactorStack(
        2,
        MATRICES,
        Partition.of(size, split),
        dtype=torch.float64,
        device=torch.get_default_device(),
    )
    expected = [RunningAverage(decay) for _ in range(MATRICES)]
    weight = 0.0
    for _ in range(4):
        batch = batch_of(size)
        keep, weight = kept_share(decay, weight)
        fold(stack, 1, batch, keep)
        for matrix in range(MATRICES):
            average = expected[matrix].add(whole(batch, matrix))
            found = as_matrix(stack.blocks[1, matrix], size)
            torch.testing.assert_close(found, blocks_only(average, split))
            torch.testing.assert_close(stack.traces[1, matrix], average.trace())
    assert stack.blocks[0].count_nonzero() == 0, "another layer's slot was touched"


def test_damping_leaves_the_stored_factor_alone_and_pads_with_the_identity() -> None:
    stack = FactorStack(
        2, MATRICES, Partition.of(5, 2), dtype=torch.float64, device=torch.get_default_device()
    )
    fold(stack, 0, batch_of(5), 0.0)
    fold(stack, 1, batch_of(5), 0.0)
    before = stack.blocks.clone()
    shift = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    damped = stack.damped([1], shift[1:])
    assert torch.equal(stack.blocks, before)
    for matrix in range(MATRICES):
        expected = as_matrix(before[1, matrix], 5) + shift[1, matrix] * torch.eye(5)
        torch.testing.assert_close(as_matrix(damped[0, matrix], 5), expected)
    assert torch.equal(damped[0, :, -1, 1, 1], torch.ones(MATRICES, dtype=torch.float64))
    assert damped[0, :, -1, 0, 1].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rows_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    rows = torch.ones(1, 4096, 1, dtype=dtype)  # bfloat16 stops counting at 256
    batch = FactorBatch((rows,), (1.0,), 1.0, 1.0)
    assert batch.blocks(Partition.of(1, None), torch.float32).item() == 4096
    assert batch.trace(torch.float32).item() == 4096
