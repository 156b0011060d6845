"""Parameters laid out as matrices, and back: one layer's, and a stack's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.linalg.foreach import go_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.layers.geometry import Geometry

# Below this many entries of a layer, a Python call costs more than what it moves.
SMALL_LAYER = 1 << 17

Pair = tuple[Tensor, Tensor | None]


class Matrices:
    """The matrices of a stack's layers.

    Args:
        geometry: Shape of each layer's matrices.
        weights: The layers' weights.
        dtype: Type of the matrices.
        missing: Rows that a rank's share of a weight has less than its matrices; zeros there.
        device: Where matrices are; ``None``: beside the weights.
    """

    def __init__(
        self,
        geometry: Geometry,
        weights: Sequence[Tensor],
        dtype: torch.dtype,
        missing: int,
        device: torch.device | None = None,
    ) -> None:
        self.geometry = geometry
        self.dtype, self.weight_dtype = dtype, weights[0].dtype
        self.device = device or weights[0].device
        self._missing = missing
        self._shape = weights[0].shape
        self._weights = [_with_rows(weight, self._missing) for weight in weights]
        self.go_together = go_together(weights)

    @property
    def kept_bytes(self) -> int:
        """Bytes that are there between steps."""
        kept = self._weights if self._missing else []
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def can_be_viewed(self, padding: int) -> bool:
        """Whether parameters are views of matrices that so many rows are added to."""
        # Of several matrices side by side, rows lie evenly in the weight only as they are.
        return self.geometry.matrices == 1 or not (self.geometry.transposed or padding)

    def views(self, matrices: Tensor) -> list[Pair]:
        """The parameters of each layer as views of ``[l, k, out, columns]``, or of wider ones."""
        rows, columns = self.geometry.outputs - self._missing, self.geometry.columns
        inside = matrices[:, :, :rows, :columns].unbind(0)
        return [_views(self.geometry, one, self._shape) for one in inside]

    def write(self, sources: Sequence[Pair]) -> Tensor:
        """Lays weight- and bias-shaped tensors out as ``[l, k, out, columns]``.

        A missing bias counts as zero.
        """
        geometry = self.geometry
        shape = (len(sources), geometry.matrices, geometry.outputs, geometry.columns)
        packed = torch.empty(shape, dtype=self.dtype, device=self.device)
        for matrices, (weight, bias) in zip(packed.unbind(0), sources, strict=True):
            whole_bias = None if bias is None else _with_rows(bias, self._missing)
            write_matrices(self.geometry, matrices, _with_rows(weight, self._missing), whole_bias)
        return packed

    def read(self, slots: Sequence[int], packed: Tensor) -> list[Pair]:
        """Inverts ``write`` for the layers ``slots``: views where the type is the weight's."""
        pairs = [
            read_matrices(self.geometry, matrices, self._weights[slot])
            for slot, matrices in zip(slots, packed.unbind(0), strict=True)
        ]
        if not self._missing:
            return pairs
        rows = self.geometry.outputs - self._missing
        return [(w[:rows], None if b is None else b[:rows]) for w, b in pairs]


def write_matrices(geometry: Geometry, out: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Writes a weight-shaped and a bias-shaped tensor into ``out`` ``[k, out, columns]``.

    Any memory format of the weight and any type of ``out`` will do. A missing bias counts
    as zero.
    """
    values, column = geometry.structure.places(geometry, out)
    canonical = _canonical(geometry, weight)
    into = values.view(canonical.shape)
    if not _in_same_order(into, canonical, 2):
        # A cast that keeps the strides and then a permuting copy beat one pass that does both.
        canonical = _canonical(geometry, weight.to(out.dtype))
    into.copy_(canonical)
    if column is not None:
        column.copy_(bias.view_as(column)) if bias is not None else column.zero_()


def read_matrices(
    geometry: Geometry, matrices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Inverts ``write_matrices`` into the type and memory format of ``weight``.

    Returns views where ``matrices`` has both already.
    """
    values, column = geometry.structure.places(geometry, matrices)
    values = values.view(_canonical(geometry, weight).shape)
    values = values.transpose(1, 2) if geometry.transposed else values
    values = values.flatten(0, 1)
    if not _in_same_order(values, weight, 1):
        values = torch.empty_like(weight, dtype=values.dtype).copy_(values)
    bias = None if column is None else column.flatten().to(weight.dtype)
    return values.to(weight.dtype), bias


def _views(geometry: Geometry, matrices: Tensor, shape: torch.Size) -> Pair:
    """The weight-shaped and the bias-shaped part of matrices as views."""
    values, column = geometry.structure.places(geometry, matrices)
    if geometry.transposed:
        values = values.view(values.shape[1], shape[0], *shape[2:]).transpose(0, 1)
    else:
        values = values.flatten(0, 1).view(shape)
    return values, None if column is None else column.flatten()


def _in_same_order(one: Tensor, other: Tensor, first: int) -> bool:
    """Whether rows of equal shape lie alike in memory, from dimension ``first`` on."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    alike = [size == 1 or mine == theirs for size, mine, theirs in strides]
    return all(alike[first:])


def _canonical(geometry: Geometry, weight: Tensor) -> Tensor:
    """A view of a weight-shaped tensor as ``[k, out, in, ...]``."""
    matrices = weight.view(geometry.matrices, -1, *weight.shape[1:])
    return matrices.transpose(1, 2) if geometry.transposed else matrices


def _with_rows(tensor: Tensor, missing: int) -> Tensor:
    """Appends rows of zeros."""
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
