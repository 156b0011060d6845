"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from torch_thor.layers.adapter import LayerAdapter, with_ones
from torch_thor.layers.geometry import Geometry
from torch_thor.linalg.foreach import is_asynchronous

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.layers.rows import RowPlan

ForwardConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConv: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
ConvT = TypeVar("ConvT", bound=ForwardConv | TransposedConv)


class PatchAdapter(LayerAdapter[ConvT]):
    """A row is the patch of inputs that one output position sees.

    Patches are gathered straight from the activation through an index map, so no padded
    copy and no patch tensor over all positions is made.
    """

    @abstractmethod
    def sources(
        self, module: ConvT, axis: int, position: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Which of the ``size`` inputs along an axis meet its taps at output coordinates ``[r]``.

        Returns:
            Input coordinates ``[r, taps]`` in 0..size-1, and a mask ``[r, taps]`` of those
            that are real inputs, where not all are.
        """

    @abstractmethod
    def output_size(self, module: ConvT, inputs: Tensor, plan: RowPlan) -> tuple[int, ...]:
        """Returns the spatial size of the output for batched inputs."""

    def geometry(self, module: ConvT, *, bias: bool) -> Geometry:
        """One matrix a group."""
        groups, taps = module.groups, math.prod(module.kernel_size)
        return Geometry(
            groups,
            module.out_channels // groups,
            module.in_channels // groups * taps,
            bias,
            taps,
            transposed=module.transposed,
        )

    def call_shape(self, module: ConvT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """Positions are those of the output map; an unbatched input is one sample."""
        spatial = len(module.kernel_size)
        samples = output.shape[0] if output.dim() == spatial + 2 else 1
        return samples, math.prod(output.shape[-spatial:])

    def input_rows(self, module: ConvT, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """Gathers the patches of the planned positions."""
        inputs = _batched(module, inputs)
        sample, position = plan.coordinates(inputs.device)
        where = _unravel(position, self.output_size(module, inputs, plan))
        patches = self._gather(module, inputs, sample, where)
        return with_ones(plan.reduce_inputs(_by_group(module, patches)), bias=bias)

    def output_rows(self, module: ConvT, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Gathers the output gradients of the planned positions."""
        pixels = _batched(module, gradient).movedim(1, -1)
        if plan.index is None or pixels.is_contiguous():
            rows = plan.take(pixels)
        else:
            sample, position = plan.coordinates(gradient.device)
            rows = pixels[(sample, *_unravel(position, pixels.shape[1:-1]))]
        return plan.reduce_gradients(_by_group(module, rows))

    def _gather(self, module: ConvT, inputs: Tensor, sample: Tensor, where: list[Tensor]) -> Tensor:
        """Returns ``[r, channels, *kernel]``: the patch under each output position."""
        axes = len(where)
        index: list[Tensor] = [sample.view(-1, *[1] * axes)]
        inside: Tensor | None = None
        for axis in range(axes):
            source, valid = self.sources(module, axis, where[axis], inputs.shape[2 + axis])
            shape = [len(sample), *[1] * axes]
            shape[1 + axis] = module.kernel_size[axis]
            index.append(source.view(shape))
            if valid is not None:
                valid = valid.view(shape)
                inside = valid if inside is None else inside & valid
        patches = _pixels(inputs.movedim(1, -1), index)
        if inside is not None:
            _clear(patches, inside)  # a gather makes a tensor of its own
        return patches.movedim(-1, 1)


class ConvAdapter(PatchAdapter[ForwardConv]):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` of any stride, padding, dilation, groups."""

    def sources(
        self, module: ForwardConv, axis: int, position: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tap t of output p reads input p · stride + t · dilation - padding."""
        taps = torch.arange(module.kernel_size[axis], device=position.device)
        source = position.unsqueeze(-1) * module.stride[axis] + taps * module.dilation[axis]
        return _wrap(source - _padding(module, axis)[0], size, module.padding_mode)

    def output_size(self, module: ForwardConv, inputs: Tensor, plan: RowPlan) -> tuple[int, ...]:
        """Follows from the input's size."""
        sizes = []
        for axis, size in enumerate(inputs.shape[2:]):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            left, right = _padding(module, axis)
            sizes.append((size + left + right - reach - 1) // module.stride[axis] + 1)
        return tuple(sizes)


class TransposedConvAdapter(PatchAdapter[TransposedConv]):
    """``nn.ConvTranspose1d``, ``2d``, ``3d``: weight ``[in, out/groups, *kernel]``.

    Input q reaches output p through tap t where p = q · stride - padding + t · dilation;
    solved for q, that is the patch that output p sees, with zeros where q is no input.
    """

    def sources(
        self, module: TransposedConv, axis: int, position: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tap t of output p reads input (p + padding - t · dilation) / stride, if it exists."""
        taps = torch.arange(module.kernel_size[axis], device=position.device)
        padding = cast("tuple[int, ...]", module.padding)[axis]
        scaled = position.unsqueeze(-1) + padding - taps * module.dilation[axis]
        source = scaled.div(module.stride[axis], rounding_mode="floor")
        whole = source * module.stride[axis] == scaled
        return source.clamp(0, size - 1), whole & (source >= 0) & (source < size)

    def output_size(self, module: TransposedConv, inputs: Tensor, plan: RowPlan) -> tuple[int, ...]:
        """The call's own: a caller may have asked for one of several that fit."""
        return plan.output_shape[-len(module.kernel_size) :]


def _pixels(maps: Tensor, index: list[Tensor]) -> Tensor:
    """Copies pixels of ``[N, *spatial, channels]``; whole ones where channels lie side by side."""
    if not maps.is_contiguous():
        return maps[tuple(index)]
    flat = index[0]
    for size, own in zip(maps.shape[1:-1], index[1:], strict=True):
        flat = flat * size + own
    channels = maps.shape[-1]
    return maps.view(-1, channels).index_select(0, flat.flatten()).view(*flat.shape, channels)


def _clear(pixels: Tensor, kept: Tensor) -> None:
    """Sets pixels ``[..., channels]`` to zero where a mask ``[...]`` says so."""
    if is_asynchronous(pixels.device):
        pixels *= kept.unsqueeze(-1)
    else:  # there are few of them, and whoever counts them need not wait
        outside = (~kept).flatten().nonzero().squeeze(1)
        pixels.view(-1, pixels.shape[-1]).index_fill_(0, outside, 0.0)


def _by_group(module: ForwardConv | TransposedConv, rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), module.groups, -1).transpose(0, 1)


def _batched(module: ForwardConv | TransposedConv, maps: Tensor) -> Tensor:
    return maps if maps.dim() == len(module.kernel_size) + 2 else maps.unsqueeze(0)


def _padding(module: ForwardConv, axis: int) -> tuple[int, int]:
    """Padding on the left and right of one spatial axis."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    amount = cast("tuple[int, ...]", module.padding)[axis]
    return amount, amount


def _unravel(position: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Splits a flat position into one coordinate per axis."""
    coordinates = []
    for size in reversed(sizes):
        coordinates.append(position % size)
        position = position // size
    return coordinates[::-1]


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
