"""Tensors on their way: summed as one flat message while the next one is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.distributed.packing import pack_triangles, raise_diagonals, unpack_triangles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from torch_thor.distributed.wire import Wire

# DistributedDataParallel's buckets are about as large.
_BUCKET_BYTES = 4 << 20


def sum_in_buckets(
    parts: Iterable[Part], wire: Wire, dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """Yields the sum over ranks of each part, in order.

    Args:
        parts: The same number, shapes and types on all ranks.
        wire: What carries them.
        dtype: Type in which they travel; ``None`` leaves them as they are.
    """
    flights: list[Flight] = []
    for part in parts:
        values = part.compute()
        if not flights or not flights[-1].takes(values):
            if flights:
                flights[-1].depart()
            flights.append(Flight(wire, f"statistics, bucket {len(flights)}", dtype))
        flights[-1].add(values, symmetric=part.symmetric)
    if flights:
        flights[-1].depart()
    for flight in flights:
        yield from flight.parts()


class Flight:
    """A bucket on its way: parts of one type and device, summed as one flat tensor."""

    def __init__(self, wire: Wire, name: str, dtype: torch.dtype | None) -> None:
        self._wire, self._name, self._sent_as = wire, name, dtype
        self._pieces: list[Tensor] = []
        self._shapes: list[tuple[torch.Size, bool]] = []
        self.bytes = 0

    def takes(self, values: Tensor) -> bool:
        """Whether a part can travel with those that are here."""
        kind = (values.dtype, values.device)
        fits = not self._pieces or kind == (self._pieces[0].dtype, self._pieces[0].device)
        return fits and self.bytes < _BUCKET_BYTES

    def add(self, values: Tensor, *, symmetric: bool) -> None:
        """Packs a part."""
        piece = (pack_triangles(values) if symmetric else values).flatten()
        self._pieces.append(piece)
        self._shapes.append((values.shape, symmetric))
        self.bytes += piece.numel() * piece.element_size()

    def depart(self) -> None:
        """Sends the bucket."""
        self._dtype, self._device = self._pieces[0].dtype, self._pieces[0].device
        flat = torch.cat(self._pieces)
        self._counts = [len(piece) for piece in self._pieces]
        self._pieces.clear()
        sent_as = self._sent_as or flat.dtype
        flat = flat.to(self._wire.device, sent_as)
        # A sum in half precision over many ranks would be too coarse.
        self._coarse = torch.finfo(sent_as).bits < 32
        start = self._wire.start_coarse_sum if self._coarse else self._wire.start_sum
        self._land = start(self._name, flat)

    def parts(self) -> Iterator[Tensor]:
        """Waits for the bucket and unpacks it."""
        flat = self._land().to(self._device, self._dtype)
        for piece, (shape, symmetric) in zip(
            torch.split(flat, self._counts), self._shapes, strict=True
        ):
            if not symmetric:
                yield piece.view(shape)
                continue
            packed = piece.view(*shape[:-2], -1)
            matrices = unpack_triangles(packed, shape[-1])
            yield raise_diagonals(matrices, torch.bfloat16) if self._coarse else matrices


@dataclass(frozen=True)
class Part:
    """One tensor that is summed over the ranks.

    Args:
        compute: Returns this rank's summand; called once, late, so that a sum on its way
            overlaps with the next summand.
        symmetric: Whether it holds symmetric matrices ``[..., s, s]``.
    """

    compute: Callable[[], Tensor]
    symmetric: bool
