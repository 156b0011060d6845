"""Blocks of many layers side by side: one call in the place of one for each layer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from torch_thor import linalg
from torch_thor.layers.geometry import DENSE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from torch_thor.curvature.due import DueLayer
    from torch_thor.curvature.factors import FactorStack

# What another series of calls costs, in multiplications of one product of all its blocks: a CPU
# has little to wait for.
_CALLS = {"cpu": 3e6}
_MOST_CALLS = 4e8
# Of rows that are laid out anew for one product: what caches hold, or what does no harm elsewhere.
_TABLE_BYTES = {"cpu": 32 << 20}
_MOST_TABLE_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Member:
    """One factor of a due layer.

    Args:
        due: The layer.
        number: Its place among the layers of its type and device.
        side: 0 for A, 1 for G.
    """

    due: DueLayer
    number: int
    side: int

    @property
    def factor(self) -> FactorStack:
        """The stack that holds it."""
        return self.due.stack.factors[self.side]

    @property
    def blocks(self) -> Tensor:
        """Its running average, ``[k, n, s, s]``."""
        return self.factor.blocks[self.due.slot]

    @property
    def targets(self) -> list[Tensor]:
        """What its blocks are factorized into, each ``[k, n, s, ...]``."""
        return self.due.stack.inverses.targets(self.side, self.due.slot)

    @property
    def is_owned(self) -> bool:
        """Whether only this rank has it."""
        return self.side == 1 and self.due.stack.shard is not None

    @property
    def count(self) -> int:
        """Blocks of all its matrices."""
        return self.due.matrices * self.factor.partition.count

    @property
    def rows(self) -> tuple[Tensor, ...] | None:
        """Dense rows ``[k, r, d]`` that all weigh alike; ``None`` for statistics of other kinds."""
        batch = self.due.statistics.batch[self.side]
        alike = len(set(batch.weights)) == 1
        fits = batch.structure is DENSE and alike and not self.is_owned
        return batch.rows if fits and self.due.blocks is None else None

    def compute(self) -> Tensor:
        """The blocks of this rank's batch, whatever its kind; those of every owner of a shard."""
        stack, batch = self.due.stack, self.due.statistics.batch[self.side]
        return (
            stack.blocks_g(batch) if self.side else batch.blocks(self.factor.partition, stack.dtype)
        )


class BlockBatch:
    """The blocks of some factors of one type and device, padded to one size: ``[B, S, S]``.

    Args:
        members: The factors.
        size: S, at least the rows of the largest block.
    """

    def __init__(self, members: Sequence[Member], size: int) -> None:
        self.members, self.size = members, size
        self._counts = tuple(one.count for one in members)
        self._like = members[0].blocks
        self._layers = [one.number for one in members]

    @property
    def is_padded(self) -> bool:
        """Whether any block has rows that are not a factor's."""
        cuts = (one.factor.partition for one in self.members)
        return any(cut.block < self.size or cut.padding for cut in cuts)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Each factor's part of ``[B, S, ...]``: ``[k, n, s, ...]``."""
        found = []
        for one, part in zip(self.members, buffer.split(self._counts), strict=True):
            shaped = part.view(one.due.matrices, -1, *part.shape[1:])
            rows = one.factor.partition.block
            for dimension in range(2, shaped.dim()) if rows < self.size else ():
                shaped = shaped.narrow(dimension, 0, rows)
            found.append(shaped)
        return found

    def load(self, parts: Sequence[Tensor]) -> Tensor:
        """Lays factors' tensors ``[k, n, s, ...]`` side by side, with zeros as padding."""
        shape = (sum(self._counts), *[self.size] * (parts[0].dim() - 2))
        buffer = self._like.new_zeros(shape) if self.is_padded else self._like.new_empty(shape)
        torch._foreach_copy_(self.views(buffer), list(parts))
        return buffer

    def store(self, parts: Sequence[Tensor], buffer: Tensor) -> None:
        """Inverts ``load``."""
        views = self.views(buffer)
        by_type: dict[torch.dtype, list[int]] = defaultdict(list)
        for place, part in enumerate(parts):
            by_type[part.dtype].append(place)
        for places in by_type.values():
            torch._foreach_copy_([parts[p] for p in places], [views[p] for p in places])

    def of_layers(self, values: Tensor) -> Tensor:
        """Spreads a value of each layer ``[l]`` over its blocks: ``[B]``."""
        return values.index_select(0, self.layer_of_block)

    @property
    def layer_of_block(self) -> Tensor:
        """The number of each block's layer: ``[B]``."""
        return linalg.owners(self._counts, self._like.device, tuple(self._layers))

    def of_matrices(self, values: Tensor, starts: Sequence[int]) -> Tensor:
        """Spreads values of each matrix, all of A before all of G, over its blocks: ``[B]``.

        Args:
            values: ``[2T]``.
            starts: The number of each layer's first matrix.
        """
        total = len(values) // 2
        counts = [
            one.factor.partition.count for one in self.members for _ in range(one.due.matrices)
        ]
        numbers = [
            one.side * total + starts[one.number] + matrix
            for one in self.members
            for matrix in range(one.due.matrices)
        ]
        chosen = linalg.owners(tuple(counts), self._like.device, tuple(numbers))
        return values.index_select(0, chosen)

    def unused(self) -> Tensor:
        """Which rows of the blocks are padding: ``[B, S]``."""
        shapes = [
            (one.due.matrices, one.factor.partition.count, cut.block, cut.padding)
            for one in self.members
            for cut in (one.factor.partition,)
        ]
        return linalg.padding_of(tuple(shapes), self.size, self._like.device)

    def grams(self) -> Tensor:
        """Σ rowsᵀ rows of every batch; zeros, or nothing, of those that have other statistics."""
        shape = (sum(self._counts), self.size, self.size)
        others = any(one.rows is None for one in self.members)
        zeros = others and self.is_padded
        result = self._like.new_zeros(shape) if zeros else self._like.new_empty(shape)
        first = dict(zip(self.members, [0, *accumulate(self._counts)], strict=False))
        views = dict(zip(self.members, self.views(result), strict=True))
        for together in self._tables():
            begin, number = first[together[0]], sum(one.count for one in together)
            self._products(together, result[begin : begin + number])
        dense = [one for one in self.members if one.rows is not None]
        scales = [_scale(one) for one in dense]
        if dense:
            torch._foreach_mul_([views[one] for one in dense], scales)
        for one in dense:
            scale = one.due.statistics.batch[one.side].scale
            if isinstance(scale, torch.Tensor):
                views[one].mul_(scale.to(result.dtype).view(-1, 1, 1, 1))
        return result

    def _tables(self) -> Iterator[list[Member]]:
        """Neighbours of about as many rows, as many as go into a table."""
        limit = _TABLE_BYTES.get(self._like.device.type, _MOST_TABLE_BYTES)
        limit //= self.size * self._like.element_size()
        table: list[Member] = []
        blocks = most = 0
        for one in self.members:
            rows = _rows(one)
            higher, more = max(most, rows), blocks + one.count
            zeros = more * higher - blocks * most - one.count * rows
            costs = zeros * self.size**2 > _saved_by_joining(one)
            if table and (rows < 0 or costs or more * higher > limit):
                yield table
                table, higher, more = [], rows, one.count
            if rows < 0:
                blocks = most = 0
                continue
            table.append(one)
            blocks, most = more, higher
        if table:
            yield table

    def _products(self, together: list[Member], into: Tensor) -> None:
        """Writes the products of rows that go into one table."""
        tiles = self._as_they_are(together)
        if tiles is None:
            counts = {_rows(one) for one in together}
            shape = (len(into), max(counts), self.size)
            full = len(counts) == 1 and not self.is_padded
            tiles = into.new_empty(shape) if full else into.new_zeros(shape)
            _fill(together, tiles)
        torch.bmm(tiles.mT, tiles, out=into)

    def _as_they_are(self, together: list[Member]) -> Tensor | None:
        """Rows of a single layer that need no other layout: tiles ``[n, r, s]``."""
        one, *others = together
        (rows, *calls), cut = one.rows or (None,), one.factor.partition
        if others or calls or rows is None or len(rows) > 1 or rows.dtype != self._like.dtype:
            return None
        if cut.padding or cut.block < self.size:
            return None
        return rows[0].view(-1, cut.count, cut.block).transpose(0, 1)


def batches(members: Sequence[Member], *, padded: bool) -> list[BlockBatch]:
    """Sorts factors by the sizes of their blocks.

    Smaller ones join the next larger where padding costs less than another series of calls.

    Args:
        members: Factors of one type and device.
        padded: Whether sizes may be joined.
    """
    by_size: dict[tuple[bool, int], list[Member]] = defaultdict(list)
    for one in members:
        by_size[one.is_owned, one.factor.partition.block].append(one)
    sizes = sorted(by_size)
    for small, large in pairwise(sizes):
        joined = padded and small[1] > 1 and small[0] == large[0]
        own = by_size[small]
        more = sum(one.count for one in own) * (large[1] ** 3 - small[1] ** 3)
        if joined and more <= _saved_by_joining(own[0]):
            by_size[large] += by_size.pop(small)
    # Those of a stack have equal numbers of rows; the order may not depend on what a rank has seen.
    stacks = {stack: n for n, stack in enumerate(dict.fromkeys(one.due.stack for one in members))}
    return [
        BlockBatch(sorted(own, key=lambda one: (stacks[one.due.stack], one.side)), size)
        for (_, size), own in by_size.items()
    ]


def _saved_by_joining(member: Member) -> float:
    return _CALLS.get(member.blocks.device.type, _MOST_CALLS)


def _rows(member: Member) -> int:
    rows = member.rows
    return -1 if rows is None else sum(one.shape[1] for one in rows)


def _scale(member: Member) -> float:
    batch = member.due.statistics.batch[member.side]
    scale = 1.0 if isinstance(batch.scale, torch.Tensor) else batch.scale
    return scale * batch.weights[0]


def _fill(members: list[Member], table: Tensor) -> None:
    """Copies rows ``[k, r, d]`` to tiles ``[B, r, S]``."""
    targets, sources = [], []
    for one, part in zip(members, table.split([m.count for m in members]), strict=True):
        cut, begin = one.factor.partition, 0
        tiles = part.view(one.due.matrices, cut.count, *part.shape[1:])
        full = cut.count - bool(cut.padding)
        for rows in one.rows or ():
            own = tiles[:, :, begin : begin + rows.shape[1]]
            begin += rows.shape[1]
            if full:
                head = rows[..., : full * cut.block].unflatten(-1, (full, cut.block))
                targets.append(own[:, :full, :, : cut.block].transpose(1, 2))
                sources.append(head)
            if full < cut.count:
                tail = rows[..., full * cut.block :]
                targets.append(own[:, full, :, : tail.shape[-1]])
                sources.append(tail)
    torch._foreach_copy_(targets, sources)
