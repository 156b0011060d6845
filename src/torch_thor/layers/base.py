"""What a layer type has to say about itself, and how its weight becomes matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan

ModuleT = TypeVar("ModuleT", bound=nn.Module)


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


class LayerAdapter(ABC, Generic[ModuleT]):
    """Geometry of one layer type; holds no state.

    An adapter turns the input and the output gradient of a call into rows of the
    canonical statistics, a ``[k, r, columns]`` and g ``[k, r, out]``, such that the
    gradient of the weight's matrices is Σ_rows g aᵀ.

    The module's parameters ``weight`` and ``bias`` are what is preconditioned.

    Attributes:
        by_default: Whether layers of this type are preconditioned unless excluded, or only
            where the user includes them.
        inside_function: Whether its calls happen where no module hook fires.
        has_tokens: Whether a position of several is a token, which may be padding.
    """

    by_default: bool = True
    inside_function: bool = False
    has_tokens: bool = False

    @abstractmethod
    def geometry(self, module: ModuleT, *, bias: bool) -> Geometry:
        """Returns the matrix shape; ``bias`` says whether the bias is trained."""

    @abstractmethod
    def call_shape(self, module: ModuleT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """Returns (samples N, shared positions T) of one call."""

    @abstractmethod
    def input_rows(self, module: ModuleT, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """Returns a as ``[k, r, columns]``."""

    @abstractmethod
    def output_rows(self, module: ModuleT, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Returns g as ``[k, r, out]``."""

    def samples_first(self, tensor: Tensor) -> Tensor:
        """Returns inputs, outputs or gradients of a call with the samples' dimension in front."""
        return tensor

    def weight(self, module: ModuleT) -> Any:
        """Returns what stands in the weight's place now: functional calls and sharding swap it."""
        return module.weight

    def refusal(self, module: ModuleT) -> str:
        """Says why this module has to train by the base rule; empty where it need not."""
        return ""


@dataclass(frozen=True)
class Part:
    """A weight of a module, and what is known about it.

    Args:
        name: Name below the module's; empty where the module has one weight only.
        adapter: Geometry.
        weight: The weight, where it is a plain parameter.
        bias: Its bias, where it has one that is a plain parameter.
    """

    name: str
    adapter: LayerAdapter[Any]
    weight: nn.Parameter | None
    bias: nn.Parameter | None


def with_ones(rows: Tensor, *, bias: bool) -> Tensor:
    """Appends the bias' column of ones to rows ``[..., d]`` where there is a bias."""
    return nn.functional.pad(rows, (0, 1), value=1.0) if bias else rows


def write_matrices(geometry: Geometry, out: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Writes a weight-shaped and a bias-shaped tensor into ``out`` ``[k, out, columns]``.

    Any memory format of the weight and any type of ``out`` will do. A missing bias counts
    as zero.
    """
    if geometry.unit_wise:
        for row, values in zip(out.unbind(1), (weight, bias), strict=False):
            if values is None:
                row.zero_()
            else:
                row.copy_(values.unsqueeze(1))
        return
    inputs = out[..., : geometry.inputs]
    canonical = _canonical(geometry, weight)
    into = inputs.view(canonical.shape)
    if not _in_same_order(into, canonical, 2):
        # A cast that keeps the strides and then a permuting copy beat one pass that does both.
        canonical = _canonical(geometry, weight.to(out.dtype))
    into.copy_(canonical)
    if geometry.bias:
        column = out[..., -1]
        column.copy_(bias.view_as(column)) if bias is not None else column.zero_()


def read_matrices(
    geometry: Geometry, matrices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Inverts ``write_matrices`` into the type and memory format of ``weight``.

    Returns views where ``matrices`` has both already.
    """
    if geometry.unit_wise:
        scale, *shift = (row.to(weight.dtype) for row in matrices[..., 0].unbind(1))
        return scale.contiguous(), shift[0] if shift else None
    values = matrices[..., : geometry.inputs]
    values = values.view(_canonical(geometry, weight).shape)
    values = values.transpose(1, 2) if geometry.transposed else values
    values = values.flatten(0, 1)
    if not _in_same_order(values, weight, 1):
        values = torch.empty_like(weight, dtype=values.dtype).copy_(values)
    values = values.to(weight.dtype)
    bias = matrices[..., -1].flatten().to(weight.dtype) if geometry.bias else None
    return values, bias


def views_of(
    geometry: Geometry, matrices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None] | None:
    """The weight-shaped and the bias-shaped part of ``matrices`` as views.

    Args:
        geometry: Shape of the matrices.
        matrices: ``[k, out, columns]``, contiguous.
        weight: A tensor of the weight's shape.

    Returns:
        ``None`` where a group's rows don't lie evenly in the weight (grouped transposed
        convolutions).
    """
    if geometry.unit_wise:
        scale, *shift = matrices[..., 0].unbind(1)
        return scale, shift[0] if shift else None
    if geometry.transposed and geometry.matrices > 1:
        return None
    inputs = matrices[..., : geometry.inputs]
    if geometry.transposed:
        values = inputs.view(geometry.outputs, weight.shape[0], *weight.shape[2:]).transpose(0, 1)
    else:
        values = inputs.flatten(0, 1).view(weight.shape)
    return values, matrices[..., -1].flatten() if geometry.bias else None


def _in_same_order(one: Tensor, other: Tensor, first: int) -> bool:
    """Whether rows of equal shape lie alike in memory, from dimension ``first`` on."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    alike = [size == 1 or mine == theirs for size, mine, theirs in strides]
    return all(alike[first:])


def _canonical(geometry: Geometry, weight: Tensor) -> Tensor:
    """A view of a weight-shaped tensor as ``[k, out, in, ...]``."""
    rest = weight.shape[1:]
    if geometry.transposed:
        return weight.view(geometry.matrices, -1, *rest).transpose(1, 2)
    return weight.view(geometry.matrices, geometry.outputs, *rest)
