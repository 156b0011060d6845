"""Geometry of the layer types: how a module's call becomes rows and matrices.

An adapter holds no state. It knows the shape of a module's weight as a stack of
matrices ``[k, out, columns]`` (k > 1 for a grouped convolution, columns = inputs
plus one where there is a trained bias) and turns the input and the output gradient
of a call into rows of the canonical statistics a ``[k, r, columns]`` and
g ``[k, r, out]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_thor.sampling import RowPlan

ConvModule: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
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
    """

    matrices: int
    outputs: int
    inputs: int
    bias: bool
    taps: int = 1

    @property
    def columns(self) -> int:
        """Columns of one matrix, bias included."""
        return self.inputs + int(self.bias)


class LayerAdapter(ABC, Generic[ModuleT]):
    """Geometry of one layer type."""

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


def write_matrices(geometry: Geometry, out: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Writes a weight-shaped and a bias-shaped tensor into ``out`` ``[k, out, columns]``.

    One pass, whatever the memory format of the weight and the type of ``out``. A missing
    bias counts as zero.
    """
    shape = weight.shape
    split = (geometry.matrices, geometry.outputs, *shape[1:])
    inputs = out[..., : geometry.inputs]
    inputs.view(*inputs.shape[:2], *shape[1:]).copy_(weight.view(split))
    if geometry.bias:
        column = out[..., -1]
        column.copy_(bias.view_as(column)) if bias is not None else column.zero_()


def read_matrices(
    geometry: Geometry, matrices: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Inverts ``write_matrices`` into the type and memory format of ``weight``.

    Returns views where ``matrices`` has both already.
    """
    values = matrices[..., : geometry.inputs]
    values = values.view(*values.shape[:2], *weight.shape[1:]).flatten(0, 1)
    if values.dtype != weight.dtype or values.stride() != weight.stride():
        values = torch.empty_like(weight).copy_(values)
    bias = matrices[..., -1].flatten().to(weight.dtype) if geometry.bias else None
    return values, bias


def _with_ones(rows: Tensor, *, bias: bool) -> Tensor:
    return nn.functional.pad(rows, (0, 1), value=1.0) if bias else rows


class LinearAdapter(LayerAdapter[nn.Linear]):
    """``nn.Linear`` over any leading dimensions ``[N, ..., in]``."""

    def geometry(self, module: nn.Linear, *, bias: bool) -> Geometry:
        """One matrix."""
        return Geometry(1, module.out_features, module.in_features, bias)

    def call_shape(self, module: nn.Linear, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, the others positions."""
        leading = inputs.shape[:-1]
        return (leading[0], math.prod(leading[1:])) if leading else (1, 1)

    def input_rows(self, module: nn.Linear, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """Rows are the inputs themselves."""
        table = inputs.reshape(plan.samples, plan.positions, -1)
        return _with_ones(plan.take_inputs(table), bias=bias).unsqueeze(0)

    def output_rows(self, module: nn.Linear, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Rows are the output gradients themselves."""
        table = gradient.reshape(plan.samples, plan.positions, -1)
        return plan.take_gradients(table).unsqueeze(0)


class ConvAdapter(LayerAdapter[ConvModule]):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` of any stride, padding, dilation, groups.

    A row is the patch that one output position sees. Patches are gathered straight
    from the activation through an index map, so no padded copy and no patch tensor
    over all positions is made.
    """

    def geometry(self, module: ConvModule, *, bias: bool) -> Geometry:
        """One matrix a group."""
        groups = module.groups
        taps = math.prod(module.kernel_size)
        return Geometry(
            groups,
            module.out_channels // groups,
            module.in_channels // groups * taps,
            bias,
            taps,
        )

    def call_shape(self, module: ConvModule, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """Positions are those of the output map; an unbatched input is one sample."""
        spatial = len(module.kernel_size)
        samples = output.shape[0] if output.dim() == spatial + 2 else 1
        return samples, math.prod(output.shape[-spatial:])

    def input_rows(
        self, module: ConvModule, inputs: Tensor, plan: RowPlan, *, bias: bool
    ) -> Tensor:
        """Gathers the patches of the planned positions."""
        taps = len(module.kernel_size)
        inputs = inputs if inputs.dim() == taps + 2 else inputs.unsqueeze(0)
        sample, position = plan.coordinates(inputs.device)
        outputs = _output_size(module, inputs.shape[2:])
        patches = _gather_patches(module, inputs, sample, _unravel(position, outputs))
        rows = patches.reshape(len(sample), module.groups, -1).transpose(0, 1)
        return _with_ones(plan.reduce_inputs(rows), bias=bias)

    def output_rows(self, module: ConvModule, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Gathers the output gradients of the planned positions."""
        spatial = len(module.kernel_size)
        gradient = gradient if gradient.dim() == spatial + 2 else gradient.unsqueeze(0)
        sample, position = plan.coordinates(gradient.device)
        where = _unravel(position, tuple(gradient.shape[2:]))
        rows = gradient.movedim(1, -1)[(sample, *where)]
        rows = rows.reshape(len(sample), module.groups, -1).transpose(0, 1)
        return plan.reduce_gradients(rows)


def _output_size(module: ConvModule, spatial: torch.Size) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(spatial):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
        left, right = _padding(module, axis)
        sizes.append((size + left + right - reach - 1) // module.stride[axis] + 1)
    return tuple(sizes)


def _padding(module: ConvModule, axis: int) -> tuple[int, int]:
    """Padding on the left and right of one spatial axis."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    amount = cast("tuple[int, ...]", module.padding)[axis]
    return amount, amount


def _unravel(position: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Splits a flat position into one coordinate per axis."""
    coordinates = []
    for size in reversed(sizes):
        coordinates.append(position % size)
        position = position // size
    return coordinates[::-1]


def _gather_patches(
    module: ConvModule, inputs: Tensor, sample: Tensor, where: list[Tensor]
) -> Tensor:
    """Returns ``[r, channels, *kernel]``: the patch under each output position."""
    axes = len(where)
    index: list[Tensor] = [sample.view(-1, *[1] * axes)]
    inside: Tensor | None = None
    for axis in range(axes):
        taps = torch.arange(module.kernel_size[axis], device=inputs.device)
        source = where[axis].unsqueeze(-1) * module.stride[axis] + taps * module.dilation[axis]
        source, valid = _wrap(
            source - _padding(module, axis)[0], inputs.shape[2 + axis], module.padding_mode
        )
        shape = [len(sample), *[1] * axes]
        shape[1 + axis] = module.kernel_size[axis]
        index.append(source.view(shape))
        if valid is not None:
            valid = valid.view(shape)
            inside = valid if inside is None else inside & valid
    patches = inputs.movedim(1, -1)[tuple(index)]
    if inside is not None:
        patches = patches * inside.unsqueeze(-1)
    return patches.movedim(-1, 1)


def _wrap(source: Tensor, size: int, mode: str) -> tuple[Tensor, Tensor | None]:
    """Maps padded coordinates into the map; zeros mode also says which are inside."""
    if mode == "circular":
        return source % size, None
    if mode == "replicate":
        return source.clamp(0, size - 1), None
    if mode == "reflect":
        reflected = source.abs()
        return torch.where(reflected >= size, 2 * (size - 1) - reflected, reflected), None
    return source.clamp(0, size - 1), (source >= 0) & (source < size)


_ADAPTERS: dict[type[nn.Module], LayerAdapter[nn.Module]] = {
    nn.Linear: cast("LayerAdapter[nn.Module]", LinearAdapter()),
    nn.Conv1d: cast("LayerAdapter[nn.Module]", ConvAdapter()),
    nn.Conv2d: cast("LayerAdapter[nn.Module]", ConvAdapter()),
    nn.Conv3d: cast("LayerAdapter[nn.Module]", ConvAdapter()),
}


def adapter_for(module: nn.Module) -> LayerAdapter[nn.Module] | None:
    """Returns the adapter of exactly this module type, or ``None``.

    A subclass may change what its forward does with the weight, so it has to be
    registered by itself.
    """
    return _ADAPTERS.get(type(module))
