"""Singular values made alike, as Muon does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor.linalg.partition import Partition
from torch_thor.linalg.timing import multiplies_bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence

# Odd polynomials ax + bx³ + cx⁵, each the closest to 1 on the interval that the one before it maps
# to (Polar Express, Amsel et al. 2025). The last four bring singular values in [0.0026, 1] to
# 0.72 … 1.27, as alike as five of Muon's steps do, the last three those in [0.01, 1].
_QUINTICS = (
    (4.25484, -3.15862, 0.58630),
    (4.24733, -3.15342, 0.58571),
    (4.21571, -3.13152, 0.58321),
    (4.08745, -3.04222, 0.57303),
    (3.63750, -2.72259, 0.53662),
    (2.66263, -1.97825, 0.45274),
)
_TOPS = (1.99974, 1.99890, 1.99531, 1.98023, 1.91923, 1.70763)  # of the interval of each
# Rounding above an interval would grow, so what enters a polynomial is made this much shorter.
_SAFETY = 1.01
_SAFE = tuple((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _QUINTICS)
# Rows below which a CPU's products in bfloat16 cost more to set up than they save.
_FEW_ROWS = 192
# Squares of small singular values drown in rounding, which more steps would make large.
_STEPS_OF_GRAM = 4


def orthogonalize(matrices: Tensor, iterations: int, tile: int | None = None) -> Tensor:
    """Makes the nonzero singular values of ``[l, k, out, columns]`` about alike, by products alone.

    Newton–Schulz iteration X ← aX + (bXXᵀ + c(XXᵀ)²)X from X / ‖X‖, in bfloat16 where the
    hardware multiplies it and that pays. In wider types, matrices that are much longer than wide
    are multiplied twice alone: polynomials of up to four steps are those of XXᵀ, which is small.

    Args:
        matrices: The matrices.
        iterations: Steps; four make singular values alike that are 0.0026 of the length or more.
        tile: Most rows of a tile, each of which is made alike by itself; ``None``: all rows.
    """
    rows = Partition.of(matrices.shape[2], tile)
    whole = pad(matrices, (0, 0, 0, rows.padding)) if rows.padding else matrices
    tiles = whole.reshape(-1, rows.block, matrices.shape[3])
    wide = tiles.shape[1] <= tiles.shape[2]
    found = _orthogonal(tiles if wide else tiles.mT, iterations)
    result = (found if wide else found.mT).to(matrices.dtype).reshape(whole.shape)
    return result[:, :, : rows.size]


def _orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """The same of ``[b, m, n]``, n not less than m."""
    first = max(len(_SAFE) - iterations, 0)
    quintics = _SAFE[:1] * (iterations - len(_SAFE)) + _SAFE[first:]
    # Squares of what momentum has decayed to would be zero, those of what has grown infinite.
    least = torch.finfo(matrices.dtype).tiny
    largest = matrices.abs().amax((1, 2), keepdim=True)
    x: Tensor = matrices / largest.clamp_min(least)
    lengths = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x * (_TOPS[first] / lengths.clamp_min(least))
    small = x.device.type == "cpu" and x.shape[1] < _FEW_ROWS
    if x.dtype == torch.float32 and not small and multiplies_bfloat16(x.device):
        x = x.to(torch.bfloat16)
    # By products: a step takes 2m²n + m³, and a step of XXᵀ four of m³.
    long = x.dtype != torch.bfloat16 and 2 * x.shape[2] > 3 * x.shape[1]
    together = _STEPS_OF_GRAM if long else 1
    for number in range(0, iterations, together):
        x = _steps(x, quintics[number : number + together])
    return x


def _steps(x: Tensor, quintics: Sequence[tuple[float, float, float]]) -> Tensor:
    """Some steps, whose polynomials p of S = XXᵀ commute: X ← pX and S ← p²S."""
    gram, product = torch.bmm(x, x.mT), None
    for number, (a, b, c) in enumerate(quintics):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if len(quintics) == 1:
            return torch.baddbmm(x, polynomial, x, beta=a)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else torch.bmm(product, polynomial)
        if number + 1 < len(quintics):
            gram = torch.bmm(torch.bmm(gram, polynomial), polynomial)
    return x if product is None else torch.bmm(product, x)
