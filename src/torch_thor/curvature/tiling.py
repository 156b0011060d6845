"""Which stacks go through their inverse roots together, in tiles."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.curvature.inverses import InverseRoots
from torch_thor.layers.layout import SMALL_LAYER
from torch_thor.linalg.foreach import is_asynchronous
from torch_thor.linalg.tiles import CALLS, CALLS_ON_CPU, Cut, Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from torch_thor.curvature.inverses import Inverses
    from torch_thor.layers.layout import Matrices

# Larger layers take long enough by themselves, and copies of their blocks would take memory.
_LARGE_LAYER = 1 << 22


@dataclass(frozen=True, eq=False)
class Candidate:
    """A stack, as far as tiles are concerned."""

    inverses: Inverses
    matrices: Matrices
    cut: Cut
    entries: int  # of a layer's weight
    device: torch.device  # of the weights; memory that is only planned is elsewhere

    @property
    def fits(self) -> bool:
        """Whether its layers can go in tiles, and gain by it."""
        few = _LARGE_LAYER if is_asynchronous(self.device) else SMALL_LAYER
        viewed = self.matrices.go_together and self.matrices.can_be_viewed(self.cut.g.padding)
        rooted = isinstance(self.inverses, InverseRoots)
        return rooted and viewed and self.entries < few and self.cut.is_cheap

    @property
    def is_small(self) -> bool:
        """Whether memory for its products is kept between steps."""
        return self.entries < SMALL_LAYER


@dataclass(frozen=True, eq=False)
class SharedTiles:
    """The tiles of some stacks of one type."""

    tiles: Tiles
    inverses: list[Inverses]  # of each
    are_small: bool  # whether memory for products is kept between steps

    def renew(self) -> None:
        """Takes over what has changed of the stacks' roots."""
        self.tiles.renew([(own.g, own.a) for own in self.inverses])


@dataclass(frozen=True, eq=False)
class StackTiles:
    """Those of one stack.

    Attributes:
        shared: All that go together.
        number: The stack's among them.
        bytes: What they take between steps.
    """

    shared: SharedTiles
    number: int
    bytes: int


def share_tiles(candidates: Sequence[Candidate]) -> list[StackTiles | None]:
    """Returns the tiles of each stack; ``None`` where it goes alone."""
    alike: dict[object, list[Candidate]] = defaultdict(list)
    for one in candidates:
        if one.fits:
            own = one.matrices
            alike[own.dtype, own.weight_dtype, one.device, one.is_small].append(one)
    found: dict[Candidate, StackTiles] = {}
    for together in alike.values():
        matrices, small = together[0].matrices, together[0].is_small
        calls = CALLS if is_asynchronous(together[0].device) else CALLS_ON_CPU
        cuts = [one.cut for one in together]
        tiles = Tiles(cuts, calls, dtype=matrices.dtype, device=matrices.device)
        shared = SharedTiles(tiles, [one.inverses for one in together], small)
        for number, one in enumerate(together):
            work = tiles.work_bytes(number, matrices.weight_dtype) if small else 0
            found[one] = StackTiles(shared, number, tiles.bytes(number) + work)
    return [found.get(one) for one in candidates]
