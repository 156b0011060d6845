"""Block-diagonal covariances and their running averages, against whole matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import RunningAverage, blocks_only
from torch_thor.capture.statistics import FactorBatch, traces_of
from torch_thor.curvature.factors import kept_share
from torch_thor.linalg.partition import Partition

MATRICES = 2


def batch_of(size: int, rows: int = 6, calls: int = 1) -> FactorBatch:
    tables = tuple(torch.randn(MATRICES, rows, size, dtype=torch.float64) for _ in range(calls))
    return FactorBatch(tables, tuple(1.0 + call for call in range(calls)), 1 / 3, 1.0)


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
    batch, other = batch_of(size, calls=calls), batch_of(size + 1)
    expected = torch.stack([whole(batch, matrix).trace() for matrix in range(MATRICES)])
    torch.testing.assert_close(batch.trace(torch.float64), expected)
    together = traces_of([other, batch], [torch.float64] * 2)
    torch.testing.assert_close(together[1], expected)
    torch.testing.assert_close(together[0], other.trace(torch.float64))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_the_running_average_is_unbiased_from_the_first_batch(decay: float) -> None:
    expected, weight = RunningAverage(decay), 0.0
    average = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(4):
        batch = torch.randn(3, 3, dtype=torch.float64)
        keep, weight = kept_share(decay, weight)
        average = average.lerp(batch, 1.0 - keep)
        torch.testing.assert_close(average, expected.add(batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rows_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    rows = torch.ones(1, 4096, 1, dtype=dtype)  # bfloat16 stops counting at 256
    batch = FactorBatch((rows,), (1.0,), 1.0, 1.0)
    assert batch.blocks(Partition.of(1, None), torch.float32).item() == 4096
    assert batch.trace(torch.float32).item() == 4096
    assert traces_of([batch], [torch.float32])[0].item() == 4096
