"""Pure, batched functions on stacks of symmetric matrices.

Every function takes any leading batch dimensions, never changes its input and never waits for the
device: success is returned as a mask.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.linalg.foreach import is_asynchronous
from torch_thor.linalg.square_roots import inverse_square_root

if TYPE_CHECKING:
    from collections.abc import Sequence

# Rows up to which products are faster on a CPU than LAPACK, and more accurate than it in float32.
_PRODUCTS = 96


def take(stacked: Tensor, places: Sequence[int]) -> Tensor:
    """Copies some entries of ``[L, ...]``; a list as an index would be sent to the device."""
    return torch.stack([stacked[place] for place in places])


def symmetrize(matrices: Tensor) -> Tensor:
    """Returns (M + Mᵀ) / 2 for matrices ``[..., n, n]``."""
    return (matrices + matrices.mT) * 0.5


def add_to_diagonal(matrices: Tensor, shift: Tensor) -> Tensor:
    """Returns M + shift · I; ``shift`` has the batch shape of ``matrices``."""
    shifted = matrices.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    return shifted


def inverse_root(
    matrices: Tensor, power: float, condition: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Computes M⁻¹ or M^-1/2 of symmetric positive definite matrices.

    The inverse goes through Cholesky. The inverse square root goes through products, but on
    the CPU through the eigendecomposition where that is faster or the type is float64.

    Args:
        matrices: ``[..., n, n]``, damped already.
        power: 1 or 1/2.
        condition: Bound on the condition numbers, if one is known: it saves products.

    Returns:
        The roots ``[..., n, n]``, and a mask ``[...]`` that is true where the root is
        finite and the matrix was positive definite.
    """
    matrices = symmetrize(matrices)
    if matrices.shape[-1] == 1:
        roots, good = matrices.pow(-power), matrices.flatten(-2).squeeze(-1) > 0
    elif power == 1.0:
        roots, good = _inverse(matrices)
    elif matrices.device.type == "cpu" and (
        matrices.dtype == torch.float64 or matrices.shape[-1] > _PRODUCTS
    ):
        roots, good = _inverse_square_root(matrices)
    else:
        return inverse_square_root(matrices, condition)  # what has converged is finite
    return roots, good & roots.isfinite().flatten(-2).all(-1)


def _inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    triangle, info = torch.linalg.cholesky_ex(matrices)
    good = info == 0
    # A triangle with a zero on its diagonal would raise.
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return torch.cholesky_inverse(torch.where(good[..., None, None], triangle, identity)), good


def _inverse_square_root(matrices: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = eigh(matrices)
    good = values[..., 0] > 0
    scaled = vectors * values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt().unsqueeze(-2)
    return scaled @ vectors.mT, good


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[..., n]`` in rising order, and eigenvectors ``[..., n, n]``.

    LAPACK raises on NaN; here such a matrix gives NaN eigenvalues instead.
    """
    finite = matrices.isfinite().flatten(-2).all(-1)[..., None, None]
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    values, vectors = torch.linalg.eigh(torch.where(finite, matrices, identity))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def diagonal_blocks(rows: Tensor, block: int) -> Tensor:
    """The diagonal blocks of rowsᵀ rows, and only those: ``[k, r, d]`` to ``[k, d / s, s, s]``."""
    matrices, count, size = rows.shape
    tiles = rows.view(matrices, count, size // block, block).transpose(1, 2)
    return tiles.mT @ tiles


def sum_of_squares(rows: Tensor) -> Tensor:
    """Returns tr(rowsᵀ rows) of ``[k, r, d]`` as ``[k]``: one pass, no intermediate."""
    flat = rows.flatten(1)
    return torch.stack([torch.dot(row, row) for row in flat.unbind(0)])


def norms(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Euclidean norms ``[n]`` of tensors of any shapes on one device."""
    return torch.stack(torch._foreach_norm(list(tensors), dtype=_wide(tensors, dtype)))


def are_nonzero(tensors: Sequence[Tensor]) -> Tensor:
    """Whether tensors on one device hold anything but zeros, NaN included: ``[n]``."""
    if is_asynchronous(tensors[0].device):
        dtype = _wide(tensors, torch.float32)
        return torch.stack(torch._foreach_norm(list(tensors), math.inf, dtype=dtype)) != 0
    # A CPU takes ten times as long for the largest absolute value.
    ends = [torch.aminmax(tensor) for tensor in tensors]
    low, high = (torch.stack([end != 0 for end in own]) for own in zip(*ends, strict=True))
    return low | high


def _wide(tensors: Sequence[Tensor], dtype: torch.dtype) -> torch.dtype:
    return reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, dtype)


def largest_eigenvalue(rows: Tensor, iterations: int = 64) -> Tensor:
    """Largest eigenvalue of rowsᵀ rows, by power iteration: ``[..., r, d]`` to ``[...]``.

    The Rayleigh quotient squares the error of the vector, so eigenvalues that lie close
    together do no harm.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    vector = torch.randn(rows.shape[-1], 1, generator=generator, device="cpu")
    vector = vector.to(rows, non_blocking=True).expand(*rows.shape[:-2], -1, -1)
    tiny = torch.finfo(rows.dtype).tiny
    for _ in range(iterations):
        vector = rows.mT @ (rows @ vector)
        length = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
        vector = vector / length.clamp_min(tiny)
    return (rows @ vector).square().sum((-2, -1))
