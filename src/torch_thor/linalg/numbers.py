"""Numbers of the host on their way to a device, which nothing waits for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def vector(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers as a vector."""
    numbers = [float(value) for value in values]
    if len(set(numbers)) == 1:
        return torch.full((len(numbers),), numbers[0], dtype=dtype, device=device)
    return torch.tensor(numbers, dtype=dtype, device="cpu").to(device, non_blocking=True)


@lru_cache(maxsize=64)
def constants(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers that do not change as a vector, which callers share and only read."""
    return vector(values, dtype, device)


@lru_cache(maxsize=256)
def owners(
    counts: tuple[int, ...], device: torch.device, numbers: tuple[int, ...] | None = None
) -> Tensor:
    """Says for each of Σ ``counts`` things whose it is; owners are numbered as they come.

    Callers share the result and leave it as it is.
    """
    own = range(len(counts)) if numbers is None else numbers
    flat = [number for number, count in zip(own, counts, strict=True) for _ in range(count)]
    return torch.tensor(flat, device="cpu").to(device, non_blocking=True)


@lru_cache(maxsize=64)
def padding_of(
    shapes: tuple[tuple[int, int, int, int], ...], size: int, device: torch.device
) -> Tensor:
    """Which rows of blocks that are padded to a size are padding: ``[B, size]``.

    Callers share the result and leave it as it is.

    Args:
        shapes: For some factors: matrices, blocks of each, rows of a block, and how many of the
            last one's are padding.
        size: Rows of all blocks.
        device: Where to.
    """
    rows = torch.arange(size, device="cpu")
    found = []
    for matrices, blocks, block, padding in shapes:
        used = torch.full((blocks,), block, device="cpu")
        used[-1] -= padding
        found.append((rows >= used.unsqueeze(1)).repeat(matrices, 1))
    return torch.cat(found).to(device, non_blocking=True)
