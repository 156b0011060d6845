"""The shape of a layer's weight as matrices, and the structures that its rows may have.

A structure answers all that differs between dense, one-hot and unit-wise layers; nobody else asks
which of them a layer is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_thor.layers.rows import RowPlan
    from torch_thor.linalg.partition import Partition

_ROUNDING = 1e-3  # of the summands of a gradient


@dataclass(frozen=True)
class Geometry:
    """Shape of a module's weight as matrices.

    Args:
        matrices: k, independent matrices side by side.
        outputs: Rows of one matrix.
        inputs: Columns of one matrix without the bias.
        bias: Whether a last column holds the bias.
        taps: Inputs of one channel (kernel positions); natural multiples of a block.
        transposed: The weight is stored ``[k·in, out, ...]``, in place of ``[k·out, in, ...]``.
        one_hot: Input rows are one-hot: the adapter returns them as numbers of columns
            ``[k, r]`` (-1: a row of zeros), and only the diagonal of A exists.
        unit_wise: A matrix is the scale and shift of one channel, one below the other
            (``outputs`` 1 or 2, ``inputs`` 1, no bias column). G is the Fisher of its per-sample
            gradients, and A is 1. The adapter returns rows ``[k, N·T, 1]`` of all positions:
            a meets the scale, g is the gradient of the channel.
    """

    matrices: int
    outputs: int
    inputs: int
    bias: bool
    taps: int = 1
    transposed: bool = False
    one_hot: bool = False
    unit_wise: bool = False

    @property
    def columns(self) -> int:
        """Columns of one matrix, bias included."""
        return self.inputs + int(self.bias)

    @property
    def structure(self) -> Structure:
        """What its rows are like."""
        return ONE_HOT if self.one_hot else UNIT_WISE if self.unit_wise else DENSE

    @property
    def widest_input_block(self) -> int:
        """Rows of the largest block that A can have."""
        return self.structure.input_block or self.columns

    @property
    def is_plain(self) -> bool:
        """Whether rows are dense, and the weight's rows are those of its matrices."""
        return self.structure is DENSE and not self.transposed


class Structure:
    """A layer whose rows are dense: A and G are means of their outer products.

    Attributes:
        curvature: What a report calls its Fisher.
        is_factored: Whether that is A ⊗ G; else G is the Fisher of a matrix, and A is 1.
        input_block: Rows of the blocks of A, where no split has a say.
        counts_all_inputs: Whether A takes all rows of a call, whatever the budget.
    """

    curvature: ClassVar[str] = "Kronecker factors"
    is_factored: ClassVar[bool] = True
    input_block: ClassVar[int | None] = None
    counts_all_inputs: ClassVar[bool] = False

    def output_block(self, split: int | None, *, diagonal: bool) -> int | None:
        """Most rows of a block of G; ``diagonal``: of a Fisher that isn't factored."""
        return split

    def reduces(self, *, asked: bool) -> bool:
        """Whether positions are averaged, where the user has asked for that or not."""
        return asked

    def places(self, geometry: Geometry, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parts of matrices ``[..., out, columns]`` that hold the weight and the bias."""
        return matrices[..., : geometry.inputs], matrices[..., -1] if geometry.bias else None

    def call_rows(
        self, geometry: Geometry, inputs: Tensor, gradients: Tensor, plan: RowPlan
    ) -> tuple[Tensor, Tensor]:
        """Rows of A and G of a call, from what the adapter returned."""
        return inputs, gradients

    def moves(self, geometry: Geometry, inputs: Tensor, gradients: Tensor) -> bool:
        """Whether rows make a gradient of the weight that isn't zero; waits for the device.

        What is small against its summands may be rounding.
        """
        wide = torch.promote_types(gradients.dtype, torch.float32)
        gradients, inputs = gradients.to(wide), inputs.to(wide)
        inputs = inputs[..., : geometry.inputs]
        summed = (gradients.mT @ inputs).abs()
        return bool((summed > _ROUNDING * (gradients.abs().mT @ inputs.abs())).any())

    def where(self, counted: Tensor, rows: Tensor, others: Tensor | None = None) -> Tensor:
        """Rows where they are counted, ``[r]``; elsewhere others, or rows of zeros."""
        return torch.where(counted.unsqueeze(-1), rows, 0.0 if others is None else others)

    def no_rows(self, like: Tensor, matrices: int, size: int) -> Tensor:
        """Rows of A of a layer that was not called."""
        return like.new_empty(matrices, 0, size)

    def trace(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The trace of Σ a aᵀ: ``[k]``; a sum of squares needs no matrix."""
        return linalg.sum_of_squares(rows.to(dtype))

    def blocks(self, rows: Tensor, partition: Partition, dtype: torch.dtype) -> Tensor:
        """The diagonal blocks of Σ a aᵀ: ``[k, n, s, s]``."""
        wide = rows.to(dtype)
        if partition.padding:  # pad() copies even where nothing is added
            wide = pad(wide, (0, partition.padding))
        return linalg.diagonal_blocks(wide, partition.block)

    def add_moments(
        self,
        total: Tensor,
        rows: Tensor,
        gradients: Tensor,
        weight: float,
        turn: Callable[[Tensor], Tensor],
    ) -> None:
        """Adds squares of rows' gradients in an eigenbasis, Σ weight · g² (Qᵀa)²ᵀ.

        Args:
            total: ``[k, out, columns]``.
            rows: Rows of A.
            gradients: Rows of G in their basis.
            weight: Weight of each row.
            turn: Takes dense rows of A to their basis.
        """
        total += gradients.square().mT @ turn(rows).square() * weight


class _OneHot(Structure):
    """Rows of A are one-hot, given as numbers of columns ``[k, r]``; a negative one is all zeros.

    A is diagonal: how often each column was hit.
    """

    input_block = 1
    counts_all_inputs = True

    def reduces(self, *, asked: bool) -> bool:
        return False  # means of one-hot rows are none

    def moves(self, geometry: Geometry, inputs: Tensor, gradients: Tensor) -> bool:
        return bool((gradients * (inputs >= 0).unsqueeze(-1)).any())

    def where(self, counted: Tensor, rows: Tensor, others: Tensor | None = None) -> Tensor:
        return torch.where(counted, rows, -1 if others is None else others)

    def no_rows(self, like: Tensor, matrices: int, size: int) -> Tensor:
        return like.new_empty(matrices, 0, dtype=torch.long)

    def trace(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return (rows >= 0).sum(1).to(dtype)

    def blocks(self, rows: Tensor, partition: Partition, dtype: torch.dtype) -> Tensor:
        hits = torch.zeros(len(rows), partition.size, dtype=dtype, device=rows.device)
        hits.scatter_add_(1, rows.clamp_min(0), (rows >= 0).to(dtype))
        return hits[..., None, None]

    def add_moments(
        self,
        total: Tensor,
        rows: Tensor,
        gradients: Tensor,
        weight: float,
        turn: Callable[[Tensor], Tensor],
    ) -> None:
        # Each column is its own eigenvector.
        kept = torch.where((rows >= 0).unsqueeze(-1), gradients.square() * weight, 0.0).mT
        total.scatter_add_(2, rows.clamp_min(0).unsqueeze(1).expand_as(kept), kept)


class _UnitWise(Structure):
    """A matrix is scale and shift of a channel, whose Fisher is of the samples' own gradients."""

    curvature = "Fisher of each channel"
    is_factored = False

    def output_block(self, split: int | None, *, diagonal: bool) -> int | None:
        return 1 if diagonal else None

    def reduces(self, *, asked: bool) -> bool:
        return True

    def places(self, geometry: Geometry, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
        shift = matrices[..., 1, 0] if geometry.outputs > 1 else None
        return matrices[..., :1, :], shift

    def call_rows(
        self, geometry: Geometry, inputs: Tensor, gradients: Tensor, plan: RowPlan
    ) -> tuple[Tensor, Tensor]:
        """A is 1; G has the gradients of each channel and sample, ``[k, N, 1 or 2]``."""
        wide = torch.promote_types(gradients.dtype, torch.float32)
        slopes = gradients.squeeze(-1).to(wide)
        parts = (inputs.squeeze(-1).to(wide) * slopes, slopes)[: geometry.outputs]
        shape = (len(slopes), plan.samples, plan.positions)
        summed = torch.stack([part.reshape(shape).sum(2) for part in parts], dim=-1)
        return summed.new_ones(1, 1, 1).expand(*summed.shape[:2], 1), summed

    def moves(self, geometry: Geometry, inputs: Tensor, gradients: Tensor) -> bool:
        """The weight is the scale alone."""
        return super().moves(geometry, inputs, gradients[..., :1])


DENSE, ONE_HOT, UNIT_WISE = Structure(), _OneHot(), _UnitWise()
