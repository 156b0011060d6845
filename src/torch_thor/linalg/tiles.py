"""Matrices of many shapes cut into tiles, which two products multiply from both sides.

Where both sides are block-diagonal, every tile of a matrix is independent of all others:
Gᵢ Mᵢⱼ Aⱼ. So tiles of one size, of whatever matrices, take the way together, each beside copies of
its blocks. What a few wider tiles cost is less than a call, so sizes join others.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.linalg.partition import Partition

# Multiplications that take about as long as two calls.
CALLS_ON_CPU, CALLS = 1 << 19, 1 << 23
_MOST_COPIES = 4  # of blocks, in entries ÷ those of the matrices
_FEW = 1 << 14  # entries that any cut may copy


@dataclass(frozen=True)
class Cut:
    """Matrices of one shape ``[matrices, g.size, a.size]`` and how they are cut into tiles."""

    matrices: int
    g: Partition
    a: Partition

    @property
    def tiles(self) -> int:
        """Tiles of all matrices."""
        return self.matrices * self.g.count * self.a.count

    @property
    def entries(self) -> int:
        """Entries of all tiles, padding included."""
        return self.matrices * self.g.padded * self.a.padded

    @property
    def is_cheap(self) -> bool:
        """Whether tiles with blocks of their own take little more memory than the matrices."""
        rows, columns = self.g.block, self.a.block
        copied = self.g.count * self.a.count * (rows**2 + columns**2)
        return copied <= max(_MOST_COPIES * self.g.padded * self.a.padded, _FEW)


@dataclass(frozen=True)
class Kind:
    """Tiles of one size ``[g, a]``, of some cuts."""

    g: int
    a: int
    cuts: tuple[int, ...]


def kinds_of(cuts: Sequence[Cut], calls: int) -> list[Kind]:
    """Finds sizes that hold all tiles; a size joins a larger one for up to ``calls`` products."""
    tiles: dict[tuple[int, int], list[int]] = {}
    for number, cut in enumerate(cuts):
        tiles.setdefault((cut.g.block, cut.a.block), []).append(number)
    kept: dict[tuple[int, int], list[int]] = {}
    for size in sorted(tiles, key=_work, reverse=True):
        count = sum(cuts[number].tiles for number in tiles[size])
        joined = [
            other
            for other in kept
            if size[0] <= other[0]
            and size[1] <= other[1]
            and count * (_work(other) - _work(size)) <= calls
        ]
        kept.setdefault(min(joined, key=_work, default=size), []).extend(tiles[size])
    return [Kind(*size, tuple(sorted(numbers))) for size, numbers in kept.items()]


def _work(size: tuple[int, int]) -> int:
    rows, columns = size
    return rows * columns * (rows + columns)


class Tiles:
    """The blocks beside the tiles of some matrices.

    Args:
        cuts: The matrices.
        calls: Multiplications that a call less may cost.
        dtype: Type of blocks and products.
        device: Where they are.
    """

    def __init__(
        self, cuts: Sequence[Cut], calls: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.cuts, self.dtype, self.device = tuple(cuts), dtype, device
        self.kinds = kinds_of(cuts, calls)
        self.g = [self._room(kind, kind.g) for kind in self.kinds]
        self.a = [self._room(kind, kind.a) for kind in self.kinds]
        self._blocks: list[Tensor] = []  # that were copied, and which versions of them
        self._versions: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy takes its blocks over anew: torch counts writes to them from the start again."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        twin._blocks, twin._versions = [], []
        return twin

    def _room(self, kind: Kind, size: int) -> Tensor:
        """Zeros, which stay where a tile is smaller than its kind."""
        shape = (self.count(kind), size, size)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def count(self, kind: Kind) -> int:
        """Tiles of a kind."""
        return sum(self.cuts[number].tiles for number in kind.cuts)

    @property
    def is_padded(self) -> bool:
        """Whether something has to be zero: a tile smaller than its kind, or rows too many."""
        return any(
            cut.g.padding or cut.a.padding or (cut.g.block, cut.a.block) != (kind.g, kind.a)
            for kind in self.kinds
            for cut in (self.cuts[number] for number in kind.cuts)
        )

    def bytes(self, number: int) -> int:
        """What the blocks beside the tiles of a cut take."""
        kind = self._kind(number)
        return self.cuts[number].tiles * (kind.g**2 + kind.a**2) * self.dtype.itemsize

    def work_bytes(self, number: int, dtype: torch.dtype) -> int:
        """What a cut takes of a ``Workspace`` for results of a type."""
        kind, cut = self._kind(number), self.cuts[number]
        own = cut.entries * (self.dtype.itemsize + dtype.itemsize)
        # What is between the products is as large as the most tiles of a kind.
        times = 3 if kind is max(self.kinds, key=self._tile_entries) else 2
        return own + times * cut.tiles * kind.g * kind.a * self.dtype.itemsize

    def _tile_entries(self, kind: Kind) -> int:
        return self.count(kind) * kind.g * kind.a

    def _kind(self, number: int) -> Kind:
        (kind,) = (kind for kind in self.kinds if number in kind.cuts)
        return kind

    def renew(self, blocks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copies blocks (of G ``[l, k, n, s, s]``, of A) that have changed, if any have."""
        now = [block for pair in blocks for block in pair]
        versions = [block._version for block in now]  # noqa: SLF001 (torch's count of writes)
        if versions == self._versions and all(map(is_, now, self._blocks)):
            return
        self._blocks, self._versions = now, versions
        sources = [
            block.flatten(0, 1).unsqueeze(2 - side) for side in (0, 1) for block in now[side::2]
        ]
        targets = [
            part[..., : source.shape[-2], : source.shape[-1]]
            for part, source in zip(self.parts(self.g) + self.parts(self.a), sources, strict=True)
        ]
        spread = [one.expand(to.shape) for one, to in zip(sources, targets, strict=True)]
        torch._foreach_copy_(targets, spread)

    def parts(self, of_kinds: Sequence[Tensor]) -> list[Tensor]:
        """Views ``[matrices, n_g, n_a, ...]`` of each cut, of one ``[tiles, ...]`` a kind."""
        found: dict[int, Tensor] = {}
        for kind, tensor in zip(self.kinds, of_kinds, strict=True):
            pieces = tensor.split([self.cuts[number].tiles for number in kind.cuts])
            for number, piece in zip(kind.cuts, pieces, strict=True):
                cut = self.cuts[number]
                found[number] = piece.view(cut.matrices, cut.g.count, cut.a.count, *piece.shape[1:])
        return [found[number] for number in range(len(self.cuts))]

    def workspace(self, dtype: torch.dtype) -> Workspace:
        """Returns memory for products whose results are of a type."""
        return Workspace(self, dtype)


class Workspace:
    """Memory for products, and the views of it that a step needs.

    Attributes:
        inputs: Of each cut, ``[matrices, rows, columns]`` of whole tiles; zeros at first, as what
            is padding has to stay.
        outputs: The same for results, in their type.
    """

    def __init__(self, tiles: Tiles, dtype: torch.dtype) -> None:
        self._tiles = tiles
        kinds, entries = tiles.kinds, sum(cut.entries for cut in tiles.cuts)
        sizes = [tiles.count(kind) * kind.g * kind.a for kind in kinds]
        make = torch.zeros if tiles.is_padded else torch.empty
        most = max(sizes)
        own = make(entries + 2 * sum(sizes) + most, dtype=tiles.dtype, device=tiles.device)
        self.memory = (own, torch.empty(entries, dtype=dtype, device=tiles.device))
        before, *in_tiles, between = own.split([entries, *sizes, *sizes, most])
        shapes = [(-1, kind.g, kind.a) for kind in kinds] * 2
        shaped = [flat.view(shape) for flat, shape in zip(in_tiles, shapes, strict=True)]
        self._in, self._out = shaped[: len(kinds)], shaped[len(kinds) :]
        # New memory for what is between the products would cost more than they do.
        self._between = [between[: one.numel()].view(one.shape) for one in self._in]
        self.inputs, self.outputs = (_matrices(one, tiles.cuts) for one in (before, self.memory[1]))
        self._copies_in = (self._inside(self._in), self._as_tiles(self.inputs))
        self._copies_out = (self._as_tiles(self.outputs), self._inside(self._out))

    def _inside(self, of_kinds: list[Tensor]) -> list[Tensor]:
        """Views ``[matrices, n_g, n_a, s_g, s_a]`` of tiles."""
        parts = zip(self._tiles.parts(of_kinds), self._tiles.cuts, strict=True)
        return [part[..., : cut.g.block, : cut.a.block] for part, cut in parts]

    def _as_tiles(self, matrices: list[Tensor]) -> list[Tensor]:
        """The same of matrices."""
        return [
            one.view(-1, cut.g.count, cut.g.block, cut.a.count, cut.a.block).transpose(2, 3)
            for one, cut in zip(matrices, self._tiles.cuts, strict=True)
        ]

    def multiply(self) -> None:
        """Sets outputs to diag(G) inputs diag(A)."""
        torch._foreach_copy_(*self._copies_in)
        tiles = self._tiles
        rooms = zip(self._in, self._between, self._out, strict=True)
        for g, a, (before, between, after) in zip(tiles.g, tiles.a, rooms, strict=True):
            torch.bmm(g, before, out=between)
            torch.bmm(between, a, out=after)
        torch._foreach_copy_(*self._copies_out)


def _matrices(flat: Tensor, cuts: Sequence[Cut]) -> list[Tensor]:
    pieces = flat.split([cut.entries for cut in cuts])
    return [
        piece.view(cut.matrices, cut.g.padded, cut.a.padded)
        for piece, cut in zip(pieces, cuts, strict=True)
    ]
