"""The calls behind a step as statistics of A and G, before any matrix is formed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeAlias

import torch
from torch import Tensor

from torch_thor import linalg
from torch_thor.capture.calls import inverse_rows, joined, loss_terms, rows_of

if TYPE_CHECKING:
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.linalg.partition import Partition
    from torch_thor.options.curvature import Statistics


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


Batch: TypeAlias = "tuple[FactorBatch, FactorBatch]"


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


def batch_of(layer: TrackedLayer, options: Statistics, gradient_scale: float = 1.0) -> Batch | None:
    """Returns the statistics (A, G) of a layer since the last step, if it has any.

    Args:
        layer: The layer.
        options: How losses reduce, and whose gradients count.
        gradient_scale: What the loss was multiplied by (a GradScaler's scale).
    """
    calls = [call for call in layer.ledger.read() if call.share > 0]
    one_hot = layer.geometry.one_hot
    if not calls or layer.obstacle:
        return None
    if layer.geometry.unit_wise:
        calls = joined(calls)
    samples: dict[int, int] = {}
    for call in calls:
        samples[call.group] = max(samples.get(call.group, 0), call.plan.samples)
    count = sum(samples.values())
    terms = loss_terms(calls)
    scale = {"mean": count, "positions_mean": terms, "sum": 1.0 / count}
    # A sampled loss is not multiplied by anything.
    scaled_by = 1.0 if options.fisher == "mc" else gradient_scale
    weights = tuple(call.plan.scale for call in calls)
    kind = OneHotBatch if one_hot else FactorBatch
    return (
        kind(
            tuple(call.inputs for call in calls),
            (1.0,) * len(calls) if one_hot else weights,
            inverse_rows(calls, layer.weight),
            rows_of(calls),
        ),
        FactorBatch(
            tuple(call.gradients for call in calls),
            weights,
            scale[options.loss_reduction] / scaled_by**2,
            terms if options.loss_reduction == "positions_mean" else count,
        ),
    )
