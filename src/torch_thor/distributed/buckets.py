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


@dataclass(frozen=True)
class _Summand:
    """A part that was computed: flat, symmetric matrices as triangles."""

    flat: Tensor
    shape: torch.Size
    symmetric: bool

    @classmethod
    def of(cls, part: Part) -> _Summand:
        values = part.compute()
        packed = pack_triangles(values) if part.symmetric else values
        return cls(packed.flatten(), values.shape, part.symmetric)


def sum_in_buckets(
    parts: Iterable[Part], wire: Wire, dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """Yields the sum over ranks of each part, in order.

    Args:
        parts: The same number, shapes and types on all ranks.
        wire: What carries them.
        dtype: Type in which they travel; ``None`` leaves them as they are.
    """
    under_way = [
        _send(bucket, wire, f"statistics, bucket {number}", dtype)
        for number, bucket in enumerate(_buckets(parts))
    ]
    for land in under_way:
        yield from land()


def _buckets(parts: Iterable[Part]) -> Iterator[list[_Summand]]:
    """Parts of one type and device together, as many as fill a bucket."""
    bucket: list[_Summand] = []
    for part in parts:
        own = _Summand.of(part)
        if bucket:
            first = bucket[0].flat
            alike = (own.flat.dtype, own.flat.device) == (first.dtype, first.device)
            full = sum(one.flat.nbytes for one in bucket) >= _BUCKET_BYTES
            if full or not alike:
                yield bucket
                bucket = []
        bucket.append(own)
    if bucket:
        yield bucket


def _send(
    bucket: list[_Summand], wire: Wire, name: str, dtype: torch.dtype | None
) -> Callable[[], Iterator[Tensor]]:
    """Sends a bucket; the result waits for the sum and unpacks it."""
    flat = torch.cat([one.flat for one in bucket])
    own, device, sent_as = flat.dtype, flat.device, dtype or flat.dtype
    layout = [(len(one.flat), one.shape, one.symmetric) for one in bucket]
    # A sum in half precision over many ranks would be too coarse.
    coarse = torch.finfo(sent_as).bits < 32
    start = wire.start_coarse_sum if coarse else wire.start_sum
    wait = start(name, flat.to(wire.device, sent_as))

    def land() -> Iterator[Tensor]:
        pieces = torch.split(wait().to(device, own), [count for count, _, _ in layout])
        for piece, (_, shape, symmetric) in zip(pieces, layout, strict=True):
            if symmetric:
                matrices = unpack_triangles(piece.view(*shape[:-2], -1), shape[-1])
                yield raise_diagonals(matrices, torch.bfloat16) if coarse else matrices
            else:
                yield piece.view(shape)

    return land
