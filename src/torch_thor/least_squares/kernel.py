"""The kernel J Jᵀ of residuals, layer by layer, from the rows of the layers' calls.

A row of J is, for each layer, the sum of g aᵀ over a sample's positions. So the kernel's entries
are sums of (a · a′)(g · g′), and J itself is formed only where that is less work.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.least_squares.residuals import require_exact_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.least_squares.calls import RecordedCall
    from torch_thor.least_squares.residuals import Terms

_MOST_PAIRS = 1 << 26  # pairs of positions that are held at once
_PASSES = 200  # what a pass over the pairs costs, in multiplications


@dataclass(frozen=True)
class Block:
    """What a layer contributes to a column of a term.

    Args:
        start: The first of its residuals.
        inputs: Rows of a, ``[k, N, T, columns]``.
        slopes: Rows of g, ``[k, N, T, out]``.
    """

    start: int
    inputs: Tensor
    slopes: Tensor

    @property
    def stop(self) -> int:
        """The end of its residuals."""
        return self.start + self.inputs.shape[1]

    @property
    def gradients(self) -> Tensor:
        """Each residual's own gradient, ``[N, k·out·columns]``."""
        own = self.slopes.mT @ self.inputs
        return own.transpose(0, 1).flatten(1)


def kernel_of(terms: Terms, calls: Sequence[RecordedCall]) -> Tensor:
    """J Jᵀ of scaled residuals by the weights of the layers that were called, ``[n, n]``.

    Row i of a term must come from row i of the calls behind it, and from no other.

    Raises:
        InvalidOptionError: Where a call behind a term is in half precision.
        ValueError: Where it has another number of rows.
    """
    flat = terms.values
    kernel = flat.new_zeros(len(flat), len(flat))
    blocks: dict[TrackedLayer, list[Block]] = defaultdict(list)
    for start, number, column in _columns(terms):
        for layer, sides in _sides(number, column, calls).items():
            inputs, slopes = (torch.cat(parts, dim=2) for parts in zip(*sides, strict=True))
            blocks[layer].append(Block(start, inputs, slopes))
    for own in blocks.values():
        _add(kernel, own)
    return kernel


def _columns(terms: Terms) -> Iterator[tuple[int, int, Tensor]]:
    """First residual, term and values of each column."""
    start = 0
    for number, term in enumerate(terms.scaled):
        for column in term.unbind(1):
            yield start, number, column
            start += len(column)


def _sides(
    number: int, column: Tensor, calls: Sequence[RecordedCall]
) -> dict[TrackedLayer, list[tuple[Tensor, Tensor]]]:
    """Rows of a and g of each call behind a column."""
    edges = [call.output for call in calls]
    if not edges or not column.requires_grad:
        return {}
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
        column.sum(), edges, retain_graph=True, allow_unused=True
    )
    found: dict[TrackedLayer, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for call, slope in zip(calls, slopes, strict=True):
        if slope is None:
            continue
        require_exact_type(f"type of layer {call.layer.name!r}", call.dtype)
        if call.plan.samples == len(column):
            found[call.layer].append(call.sides(slope))
        elif bool(slope.any()):
            raise ValueError(
                f"Term {number} of the residuals has {len(column)} rows, but comes from a call of "
                f"layer {call.layer.name!r} with {call.plan.samples}. Call the network once for "
                "each term, on that term's own points, or use curvature='kronecker'."
            )
    return found


def _add(kernel: Tensor, blocks: Sequence[Block]) -> None:
    """Adds what one layer contributes."""
    positions = sum(block.inputs[0, :, :, 0].numel() for block in blocks)
    residuals = sum(block.stop - block.start for block in blocks)
    columns, outputs = blocks[0].inputs.shape[-1], blocks[0].slopes.shape[-1]
    by_pairs = positions**2 * (columns + outputs + _PASSES)
    if by_pairs < residuals**2 * columns * outputs and positions**2 <= _MOST_PAIRS:
        found = _by_pairs(blocks)
    else:
        rows = torch.cat([block.gradients for block in blocks])
        found = rows @ rows.mT
    where = [slice(block.start, block.stop) for block in blocks]
    sizes = [one.stop - one.start for one in where]
    for rows_of, strip in zip(where, found.split(sizes), strict=True):
        for columns_of, part in zip(where, strip.split(sizes, dim=1), strict=True):
            kernel[rows_of, columns_of] += part


def _by_pairs(blocks: Sequence[Block]) -> Tensor:
    """Σ (a · a′)(g · g′) over the positions of each pair of residuals."""
    # Position by position, so that sums over them are of whole rows.
    inputs = torch.cat([block.inputs.transpose(1, 2).flatten(1, 2) for block in blocks], dim=1)
    slopes = torch.cat([block.slopes.transpose(1, 2).flatten(1, 2) for block in blocks], dim=1)
    pairs = (inputs @ inputs.mT).mul_(slopes @ slopes.mT)
    shapes = [block.inputs.shape[1:3] for block in blocks]
    sizes = [samples * positions for samples, positions in shapes]
    strips = zip(pairs.sum(0).split(sizes), shapes, strict=True)
    rows = torch.cat([strip.view(t, n, -1).sum(0) for strip, (n, t) in strips])
    parts = zip(rows.split(sizes, dim=1), shapes, strict=True)
    return torch.cat([part.reshape(-1, t, n).sum(1) for part, (n, t) in parts], dim=1)
