"""Large layers on the CPU, some rows at a time, so that what arises on the way stays in the cache.

Preconditioning a layer of millions of weights as a whole writes and reads each intermediate result
through main memory, into pages that are new every time. A band of rows is read once, goes through
momentum, cast, both products and norms while it is in the cache, and leaves one half-precision copy
behind until the layer's length is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from torch_thor.curvature.inverses import InverseRoots
from torch_thor.curvature.row_averages import evening_of
from torch_thor.directions.controls import LengthControl
from torch_thor.layers import read_matrices, write_matrices
from torch_thor.layers.layout import SMALL_LAYER
from torch_thor.layers.shards import is_dtensor
from torch_thor.linalg.foreach import is_asynchronous
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import Control
    from torch_thor.layers import Geometry

# Entries of a band: two megabytes of float32. Fewer cost calls, more fall out of the cache.
BAND = 1 << 19


class RowRule(Protocol):
    """What is preconditioned of a parameter, and what its direction does, some rows at a time."""

    def source(self, parameter: nn.Parameter, rows: slice) -> Tensor:
        """Returns the rows of what is preconditioned."""

    def move(self, parameter: nn.Parameter, rows: slice, direction: Tensor, scale: float) -> None:
        """Takes a step along ``scale`` times the rows of a direction, whose memory it may use."""


class GradientRows:
    """A row rule that writes directions into ``.grad``, in the place of the gradients."""

    def source(self, parameter: nn.Parameter, rows: slice) -> Tensor:
        """Returns the rows of the gradient."""
        return gradient_of(parameter)[rows]

    def move(self, parameter: nn.Parameter, rows: slice, direction: Tensor, scale: float) -> None:
        """Writes ``scale`` times the rows of a direction over those of the gradient."""
        torch.mul(direction, scale, out=gradient_of(parameter)[rows])


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Returns the gradient of a parameter that has one."""
    if parameter.grad is None:
        raise InvalidOptionError("gradient", None, "that of a backward() since zero_grad()")
    return parameter.grad


@dataclass(frozen=True)
class Band:
    """Rows of a layer that are taken together: whole blocks of G."""

    blocks: slice
    rows: slice
    geometry: Geometry  # of the rows as a matrix
    padded: int  # rows of the blocks, padding included


@dataclass(frozen=True)
class BandedLayer:
    """A way through one layer, band by band."""

    stack: LayerStack
    slot: int
    roots: InverseRoots  # of the stack
    bias: nn.Parameter | None  # where it takes part

    @property
    def layer(self) -> TrackedLayer:
        """The layer."""
        return self.stack.layers[self.slot]

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """All rows of the layer."""
        cut, columns = self.stack.g.partition, self.stack.a.partition.padded
        count = max(1, BAND // (cut.block * columns))
        bands = []
        for first in range(0, cut.count, count):
            last = min(first + count, cut.count)
            rows = slice(first * cut.block, min(last * cut.block, cut.size))
            inside = replace(self.stack.geometry, outputs=rows.stop - rows.start)
            bands.append(Band(slice(first, last), rows, inside, (last - first) * cut.block))
        return tuple(bands)

    def run(self, rule: RowRule, control: Control) -> None:
        """Preconditions the layer, gives its direction the length that is asked for, and moves it.

        The control is one that needs no whole layer.
        """
        geometry, layer, bias = self.stack.geometry, self.layer, self.bias
        bias_source = None if bias is None else rule.source(bias, slice(None))
        directions = self.roots.a.new_empty(1, geometry.outputs, geometry.columns)
        lengths = control if isinstance(control, LengthControl) else None
        target = lengths.fixed_length(geometry.outputs) if lengths else None
        grafts = lengths is not None and target is None
        parts = [] if bias_source is None or not grafts else [_length(bias_source)]
        found = []
        for band in self.bands:
            source = rule.source(layer.weight, band.rows)
            if grafts:
                parts.append(_length(source))
            found.append(self._precondition(band, source, bias_source, directions))
        rows = found[0] if len(found) == 1 else torch.cat(found)
        length, factors = self._evened(rows, lengths.options.row_decay if lengths else None)
        target = math.hypot(*parts) if grafts else target
        scale = target / length if target is not None and length > 0 else 1.0
        for band in self.bands:
            if factors is not None:
                directions[0, band.rows].mul_(factors[band.rows])
            weight = layer.weight[band.rows]
            step, _ = read_matrices(band.geometry, directions[:, band.rows], weight)
            rule.move(layer.weight, band.rows, step, scale)
        if bias is not None:
            rule.move(bias, slice(None), directions[0, :, -1].to(bias.dtype), scale)

    def _evened(self, rows: Tensor, decay: float | None) -> tuple[float, Tensor | None]:
        """The direction's length, given its rows', and what evens these; ``None``: nothing."""
        if decay is None:
            return float(torch.linalg.vector_norm(rows)), None
        evening = evening_of([(self.stack.rows, (self.slot,))])
        evening.lengths[0].copy_(rows.view(1, 1, -1))
        evened = evening.fold(decay)
        return float(evened), evening.factors(torch.ones_like(evened))[0][0, 0]

    def _precondition(
        self, band: Band, weight: Tensor, bias: Tensor | None, directions: Tensor
    ) -> Tensor:
        """Writes the directions of a band and returns the length of each row."""
        rows, columns = band.geometry.outputs, band.geometry.columns
        source = directions.new_empty(1, band.padded, self.stack.a.partition.padded)
        if rows < band.padded:
            source[:, rows:].zero_()
        if columns < source.shape[2]:
            source[..., columns:].zero_()
        inside = source[:, :rows, :columns]
        write_matrices(band.geometry, inside, weight, None if bias is None else bias[band.rows])
        found = self.roots.band(source, self.slot, band.blocks)
        directions[:, band.rows] = found[:, :rows, :columns]
        lengths: Tensor = torch.linalg.vector_norm(found[0, :rows], dim=1)
        return lengths.to(torch.promote_types(lengths.dtype, torch.float32))


def _length(tensor: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    )


def banded_layers(
    stacks: Sequence[LayerStack], moves: Callable[[nn.Parameter], bool], control: Control
) -> list[BandedLayer]:
    """Returns the ways through all layers that go some rows at a time in this step.

    These are large ones on the CPU that have an inverse. There are none where a direction needs
    more than its layer's length: the KL clip, singular values, lengths of blocks of rows.
    """
    by_rows = isinstance(control, LengthControl) and control.options.per == "rows"
    if control.needs_whole_layer or by_rows:
        return []
    found = []
    for stack in filter(_fits_bands, stacks):
        for slot, (layer, record) in enumerate(zip(stack.layers, stack.records, strict=True)):
            roots, bias = stack.inverses, layer.bias
            if isinstance(roots, InverseRoots) and record.ready and moves(layer.weight):
                moving = bias if bias is not None and moves(bias) else None
                found.append(BandedLayer(stack, slot, roots, moving))
    return found


def _fits_bands(stack: LayerStack) -> bool:
    """Whether a stack's layers are large ones on the CPU, each a plain matrix."""
    geometry, weight = stack.geometry, stack.layers[0].weight
    large = weight.numel() >= SMALL_LAYER and not is_asynchronous(weight.device)
    return geometry.is_plain and large and geometry.matrices == 1 and not is_dtensor(weight)
