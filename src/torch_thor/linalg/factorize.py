"""Blocks of a whole model, factorized in one call for each block size, and multiplied in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch_thor.linalg.partition import Partition

Solution = tuple[tuple[Tensor, ...], Tensor]  # results, and a mask ``[b]`` of what succeeded
Solutions = list[Solution]
Kernel = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Solver:
    """How blocks are factorized."""

    kernel: Kernel  # of a stack ``[b, s, s]``
    symmetric: bool  # whether its results are symmetric matrices
    power: float  # p of inverse roots


def solve_all(stacks: Sequence[Tensor], solver: Solver) -> Solutions:
    """Factorizes stacks ``[b, s, s]`` in this process."""
    return [solve(stack, solver.kernel) for stack in stacks]


def solve(matrices: Tensor, kernel: Kernel) -> Solution:
    """Factorizes a stack ``[b, s, s]``; blocks that fail are tried again in float64."""
    results, good = kernel(matrices)
    if matrices.dtype == torch.float64 or bool(good.all()):
        return results, good
    bad = (~good).nonzero().squeeze(1)
    repeated, repaired = rounded(kernel(matrices[bad].double()), matrices.dtype)
    for result, again in zip(results, repeated, strict=True):
        result[bad] = again
    good[bad] = repaired
    return results, good


def rounded(solution: Solution, dtype: torch.dtype) -> Solution:
    """Results in a narrower type, which are good only where it holds them."""
    results, good = solution
    narrow = tuple(result.to(dtype) for result in results)
    for result in narrow:
        good = good & result.isfinite().flatten(1).all(1)
    return narrow, good


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
