"""Block-diagonal running covariances, stacked over layers of equal shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from torch_thor import linalg

if TYPE_CHECKING:
    from torch_thor.partition import Partition


@dataclass(frozen=True)
class FactorBatch:
    """Statistics of one factor of one layer from the calls since the last step.

    The factor is ``scale · Σ weightᵢ · rowsᵢᵀ rowsᵢ``. Its trace is a sum of squares and
    needs no matrix, so a layer that keeps its curvature pays for nothing else.

    Args:
        rows: One ``[k, r, d]`` tensor a call, of any floating type.
        weights: Rows stood for ÷ rows taken, of each call.
        scale: Common factor of the sum; a tensor ``[k]`` where the matrices differ in it.
        count: Rows (A) or loss terms (G) that the factor is a mean over: its weight in a mean
            with other ranks' batches. One for each matrix where they differ in it.
    """

    rows: tuple[Tensor, ...]
    weights: tuple[float, ...]
    scale: float | Tensor
    count: float | tuple[float, ...]

    def scaled(self, share: float | Tensor) -> Self:
        """Returns the batch of ``share`` times the factor; a tensor ``[k]`` has one a matrix."""
        return replace(self, scale=self.scale * share)

    def trace(self, dtype: torch.dtype) -> Tensor:
        """Returns tr of the factor for each of the k matrices: ``[k]``."""
        parts = [
            weight * linalg.sum_of_squares(rows.to(dtype))
            for rows, weight in zip(self.rows, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(0) * self.scale

    def blocks(self, partition: Partition, dtype: torch.dtype) -> Tensor:
        """Returns the diagonal blocks of the factor: ``[k, n, s, s]``."""
        parts = []
        for rows, weight in zip(self.rows, self.weights, strict=True):
            wide = rows.to(dtype)
            if partition.padding:  # pad() copies even where nothing is added
                wide = torch.nn.functional.pad(wide, (0, partition.padding))
            parts.append(linalg.diagonal_blocks(wide, partition.block) * weight)
        scale = self.scale
        scale = scale.to(dtype)[:, None, None, None] if isinstance(scale, Tensor) else scale
        return torch.stack(parts).sum(0) * scale if len(parts) > 1 else parts[0] * scale


@dataclass(frozen=True)
class OneHotBatch(FactorBatch):
    """Statistics of a factor whose rows are one-hot, given as numbers of columns ``[k, r]``.

    Only the diagonal exists: how often each column was hit. A negative number is a row of
    zeros.
    """

    def trace(self, dtype: torch.dtype) -> Tensor:
        """Returns the weighted number of hits for each of the k matrices: ``[k]``."""
        parts = [
            weight * (rows >= 0).sum(1).to(dtype)
            for rows, weight in zip(self.rows, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(0) * self.scale

    def blocks(self, partition: Partition, dtype: torch.dtype) -> Tensor:
        """Returns the diagonal as ``[k, d, 1, 1]``."""
        matrices = self.rows[0].shape[0]
        total = self.rows[0].new_zeros(matrices, partition.size, dtype=dtype)
        for rows, weight in zip(self.rows, self.weights, strict=True):
            hits = (rows >= 0).to(dtype) * weight
            total.scatter_add_(1, rows.clamp_min(0), hits)
        scale = self.scale[:, None] if isinstance(self.scale, Tensor) else self.scale
        return (total * scale)[..., None, None]


def add_to_columns(total: Tensor, columns: Tensor, rows: Tensor) -> None:
    """Adds rows ``[k, r, d]`` to the columns ``[k, r]`` of ``total`` ``[k, d, c]``.

    A negative number of a column leaves its row out.
    """
    kept = torch.where((columns >= 0).unsqueeze(-1), rows, 0.0).mT
    total.scatter_add_(2, columns.clamp_min(0).unsqueeze(1).expand_as(kept), kept)


class FactorStack:
    """One factor (A or G) of all layers in a stack: a running average that knows its weight.

    Args:
        layers: L, layers in the stack.
        matrices: k, matrices of one layer.
        partition: Cut of the factor's dimension into n blocks of s rows.
        dtype: float32, or float64 for a float64 model.
        device: Device of the layers.

    Attributes:
        blocks: ``[L, k, n, s, s]``; never changed by damping or inversion.
        traces: ``[L, k]``, traces of the running averages.
    """

    def __init__(
        self,
        layers: int,
        matrices: int,
        partition: Partition,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocates an empty average."""
        size = partition.block
        self.partition = partition
        self.blocks = torch.zeros(
            layers, matrices, partition.count, size, size, dtype=dtype, device=device
        )
        self.traces = torch.zeros(layers, matrices, dtype=dtype, device=device)

    def empty_batch(self, size: int, *, one_hot: bool = False) -> FactorBatch:
        """Statistics of one layer without any rows, of the factor's whole size."""
        matrices = self.traces.shape[1]
        if one_hot:
            none = self.traces.new_empty(matrices, 0, dtype=torch.long)
            return OneHotBatch((none,), (1.0,), 1.0, 0.0)
        rows = self.traces.new_empty(matrices, 0, size)
        return FactorBatch((rows,), (1.0,), 1.0, 0.0)

    def fold(self, slot: int, blocks: Tensor, trace: Tensor, keep: float) -> None:
        """Folds blocks ``[k, n, s, s]`` in: ``keep`` · old + (1 - ``keep``) · new."""
        self.blocks[slot].lerp_(blocks, 1.0 - keep)
        self.traces[slot].lerp_(trace, 1.0 - keep)

    def damped(self, slots: list[int], shift: Tensor) -> Tensor:
        """Returns the blocks of some layers plus a shift, padding as the identity.

        Args:
            slots: Layers to take.
            shift: ``[len(slots), k]`` addition to the diagonals.

        Returns:
            ``[len(slots), k, n, s, s]``.
        """
        chosen = linalg.take(self.blocks, slots)
        chosen.diagonal(dim1=-2, dim2=-1).add_(shift[..., None, None])
        if self.partition.padding:
            chosen[..., -1, :, :].diagonal(dim1=-2, dim2=-1)[..., -self.partition.padding :] = 1.0
        return chosen


def kept_share(decay: float, weight: float) -> tuple[float, float]:
    """Weight of the old average in the next one, and the next average's own weight.

    Carrying the weight makes the first average equal the first batch and every later one
    an unbiased mean (as in kfac-jax): w' = ρw + (1 - ρ), share kept = ρw / w'.
    """
    following = decay * weight + (1.0 - decay)
    return decay * weight / following, following
