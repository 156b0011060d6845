"""Blocks of a whole model, factorized in one call for each block size, and multiplied in tiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch_thor.linalg.partition import Partition

Solution = tuple[tuple[Tensor, ...], Tensor]
Solutions = list[Solution]
Kernel = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Solver:
    """How blocks are factorized.

    Args:
        kernel: Factorizes a stack ``[b, s, s]``.
        symmetric: Whether its results are symmetric matrices.
        power: p of inverse roots.
    """

    kernel: Kernel
    symmetric: bool
    power: float


@dataclass(frozen=True, eq=False)
class Factorization:
    """Blocks to factorize and where the results belong.

    Args:
        matrices: ``[l, k, n, s, s]``.
        targets: Results' stores, each ``[L, k, n, ...]``.
        slots: The l layers of the stack that ``matrices`` belong to.
        owned: Whether only this rank has these blocks.
    """

    matrices: Tensor
    targets: tuple[Tensor, ...]
    slots: list[int]
    owned: bool = False

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.matrices.shape[:3].numel()

    def store(self, results: Sequence[Tensor], good: Sequence[bool]) -> list[bool]:
        """Keeps the results of the layers all of whose blocks succeeded; says which these are."""
        shape = self.matrices.shape[:3]
        blocks = shape[1:].numel()
        success = [all(good[first : first + blocks]) for first in range(0, len(good), blocks)]
        kept = [place for place, fine in enumerate(success) if fine]
        for target, result in zip(self.targets, results, strict=True) if kept else ():
            stacked = result.view(*shape, *result.shape[1:])
            places = [target[self.slots[place]] for place in kept]
            torch._foreach_copy_(places, [stacked[place] for place in kept])
        return success


Success = dict[Factorization, list[bool]]


def factorize(jobs: Iterable[Factorization], solve: Callable[[list[Tensor]], Solutions]) -> Success:
    """Solves all jobs, stacked by block size, and stores what succeeded.

    Args:
        jobs: What to factorize.
        solve: Factorizes stacks ``[b, s, s]``, one for each size, type and device.

    Returns:
        For every job, for each of its slots, whether all its blocks succeeded.
    """
    alike: dict[tuple[int, torch.dtype, torch.device], list[Factorization]] = defaultdict(list)
    for job in jobs:
        blocks = job.matrices
        alike[blocks.shape[-1], blocks.dtype, blocks.device].append(job)
    stacked = [
        torch.cat([job.matrices.flatten(0, 2) for job in own])
        if len(own) > 1
        else own[0].matrices.flatten(0, 2)
        for own in alike.values()
    ]
    success: Success = {}
    for own, (results, good) in zip(alike.values(), solve(stacked), strict=True):
        counts = [job.blocks for job in own]
        pieces = zip(*[torch.split(result, counts) for result in results], strict=True)
        marks = iter(good.tolist())  # the host waits once for all blocks of a size
        for job, found in zip(own, pieces, strict=True):
            success[job] = job.store(found, list(islice(marks, job.blocks)))
    return success


def solve_all(stacks: Sequence[Tensor], solver: Solver) -> Solutions:
    """Factorizes stacks ``[b, s, s]`` in this process."""
    return [solve(stack, solver.kernel) for stack in stacks]


def solve(matrices: Tensor, kernel: Kernel) -> Solution:
    """Factorizes a stack ``[b, s, s]``; blocks that fail are tried again in float64.

    Returns:
        The kernel's results, and a mask ``[b]`` of the blocks that succeeded.
    """
    results, good = kernel(matrices)
    if matrices.dtype == torch.float64 or bool(good.all()):
        return results, good
    bad = (~good).nonzero().squeeze(1)
    repeated, repaired = kernel(matrices[bad].double())
    for result, again in zip(results, repeated, strict=True):
        rounded = again.to(result.dtype)
        repaired = repaired & rounded.isfinite().flatten(1).all(1)
        result[bad] = rounded
    good[bad] = repaired
    return results, good


def multiply_left(roots: Tensor, cut: Partition, matrices: Tensor) -> Tensor:
    """Returns diag(roots) M for roots ``[B, n, s, s]`` and M ``[B, out, columns]``."""
    batch, rows, columns = matrices.shape
    if cut.block == 1:
        return matrices * roots.flatten(1).unsqueeze(2)
    if cut.count == 1:
        return torch.bmm(roots[:, 0], matrices)
    padded = pad(matrices, (0, 0, 0, cut.padding)) if cut.padding else matrices
    product = torch.bmm(roots.flatten(0, 1), padded.view(-1, cut.block, columns))
    product = product.view(batch, cut.padded, columns)
    return product[:, :rows] if cut.padding else product


def multiply_right(matrices: Tensor, cut: Partition, roots: Tensor) -> Tensor:
    """Returns M diag(roots) for M ``[B, out, columns]`` and roots ``[B, n, s, s]``."""
    batch, rows, _ = matrices.shape
    if cut.block == 1:
        return matrices * roots.flatten(1).unsqueeze(1)
    if cut.count == 1:
        return torch.bmm(matrices, roots[:, 0])
    padded = pad(matrices, (0, cut.padding)) if cut.padding else matrices
    tiles = padded.reshape(batch, rows, cut.count, cut.block).transpose(1, 2)
    product = torch.bmm(tiles.reshape(-1, rows, cut.block), roots.flatten(0, 1))
    product = product.view(batch, cut.count, rows, cut.block).transpose(1, 2)
    product = product.reshape(batch, rows, cut.padded)
    return product[..., : cut.size] if cut.padding else product
