"""Symmetric blocks as triangles, tensors as flat buckets."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@lru_cache(maxsize=256)
def _triangle(size: int, device: torch.device) -> Tensor:
    """Flat numbers of the entries on and above the diagonal of a ``[size, size]`` matrix."""
    rows, columns = torch.triu_indices(size, size, device=device)
    flat: Tensor = rows * size + columns
    return flat


@lru_cache(maxsize=256)
def _square(size: int, device: torch.device) -> Tensor:
    """For each entry of a ``[size, size]`` matrix, its place in the packed triangle."""
    places = torch.zeros(size * size, dtype=torch.long, device=device)
    triangle = _triangle(size, device)
    places[triangle] = torch.arange(len(triangle), device=device)
    square = places.view(size, size)
    return (square + square.triu(1).mT).flatten()


def packed_size(size: int) -> int:
    """Entries on and above the diagonal of a ``[size, size]`` matrix."""
    return size * (size + 1) // 2


def pack_triangles(matrices: Tensor) -> Tensor:
    """Upper triangles of symmetric matrices ``[..., s, s]``: ``[..., s (s + 1) / 2]``."""
    size = matrices.shape[-1]
    return matrices.flatten(-2)[..., _triangle(size, matrices.device)]


def unpack_triangles(packed: Tensor, size: int) -> Tensor:
    """Inverts ``pack_triangles``: ``[..., s, s]``, symmetric to the bit."""
    return packed[..., _square(size, packed.device)].view(*packed.shape[:-1], size, size)


def raise_diagonals(matrices: Tensor, wire: torch.dtype) -> Tensor:
    """Makes up for the rounding of positive semidefinite blocks ``[..., s, s]``, in place.

    Entries that are rounded twice by a relative u each move the eigenvalues of the block,
    scaled to a unit diagonal, by less than 1.5 u √s: a block that was singular stays positive
    when its diagonal grows by that share.
    """
    unit = torch.finfo(wire).eps / 2
    matrices.diagonal(dim1=-2, dim2=-1).mul_(1.0 + 1.5 * unit * matrices.shape[-1] ** 0.5)
    return matrices
