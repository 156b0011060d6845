"""Pure, batched functions on stacks of symmetric matrices.

Every function takes any leading batch dimensions, never changes its input and
never waits for the device: success is returned as a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HALF_ITERATIONS = 30


def symmetrize(matrices: Tensor) -> Tensor:
    """Returns (M + Mᵀ) / 2 for matrices ``[..., n, n]``."""
    return (matrices + matrices.mT) * 0.5


def add_to_diagonal(matrices: Tensor, shift: Tensor) -> Tensor:
    """Returns M + shift · I; ``shift`` has the batch shape of ``matrices``."""
    shifted = matrices.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    return shifted


def inverse_root(matrices: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Computes M⁻¹ or M^-1/2 of symmetric positive definite matrices.

    The inverse goes through Cholesky. The inverse square root goes through the
    eigendecomposition on the CPU, and elsewhere through a coupled Newton-Schulz
    iteration, because batched eigendecompositions are slow on several CUDA builds.

    Args:
        matrices: ``[..., n, n]``, damped already.
        power: 1 or 1/2.

    Returns:
        The roots ``[..., n, n]``, and a mask ``[...]`` that is true where the root is
        finite and the matrix was positive definite.
    """
    matrices = symmetrize(matrices)
    if matrices.shape[-1] == 1:
        roots, good = matrices.pow(-power), matrices.flatten(-2).squeeze(-1) > 0
    elif power == 1.0:
        roots, good = _inverse(matrices)
    elif matrices.device.type == "cpu":
        roots, good = _inverse_square_root(matrices)
    else:
        roots, good = newton_schulz_inverse_square_root(matrices)
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


def newton_schulz_inverse_square_root(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Computes M^-1/2 by products alone, for devices with slow eigendecompositions.

    Coupled iteration Y → M^1/2, Z → M^-1/2 with Y₀ = M / c, Z₀ = I, and
    T = (3I - Z Y) / 2 (Higham, Functions of Matrices, eq. 6.35); c bounds the largest
    eigenvalue, so it converges for every positive definite M.

    Args:
        matrices: ``[..., n, n]``, symmetric.

    Returns:
        As ``inverse_root``; the mask is true where M · Z² has come close to I.
    """
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    # The largest row sum bounds the spectral radius more tightly than the trace does.
    bound = matrices.abs().sum(-1).amax(-1).clamp_min(torch.finfo(matrices.dtype).tiny)
    bound = bound.unsqueeze(-1).unsqueeze(-1)
    root, inverse = matrices / bound, identity.expand_as(matrices)
    for _ in range(_HALF_ITERATIONS):
        step = 1.5 * identity - 0.5 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    residual = (inverse @ root - identity).flatten(-2).abs().amax(-1)
    return inverse * bound.rsqrt(), residual < 1e-2


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigendecomposition with non-finite matrices replaced by the identity.

    LAPACK raises on NaN; here such a matrix gives NaN eigenvalues instead.

    Returns:
        Eigenvalues ``[..., n]`` in rising order, eigenvectors ``[..., n, n]``.
    """
    finite = matrices.isfinite().flatten(-2).all(-1)[..., None, None]
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    values, vectors = torch.linalg.eigh(torch.where(finite, matrices, identity))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def diagonal_blocks(rows: Tensor, block: int) -> Tensor:
    """Accumulates the diagonal blocks of rowsᵀ rows, and only those.

    Args:
        rows: ``[k, r, d]`` with d a multiple of ``block``.
        block: Block size s.

    Returns:
        ``[k, d / s, s, s]``.
    """
    matrices, count, size = rows.shape
    tiles = rows.view(matrices, count, size // block, block).transpose(1, 2)
    return tiles.mT @ tiles


def sum_of_squares(rows: Tensor) -> Tensor:
    """Returns tr(rowsᵀ rows) of ``[k, r, d]`` as ``[k]``: one pass, no intermediate."""
    flat = rows.flatten(1)
    return torch.stack([torch.dot(row, row) for row in flat.unbind(0)])


def largest_eigenvalue(rows: Tensor, iterations: int = 64) -> Tensor:
    """Largest eigenvalue of rowsᵀ rows by power iteration, without forming it.

    The Rayleigh quotient squares the error of the vector, so eigenvalues that lie close
    together do no harm.

    Args:
        rows: ``[..., r, d]``.
        iterations: Products to take.

    Returns:
        ``[...]``.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(rows.shape[-1], 1, generator=generator).to(rows)
    vector = vector.expand(*rows.shape[:-2], -1, -1)
    tiny = torch.finfo(rows.dtype).tiny
    for _ in range(iterations):
        vector = rows.mT @ (rows @ vector)
        length = torch.linalg.vector_norm(vector, dim=-2, keepdim=True)
        vector = vector / length.clamp_min(tiny)
    return (rows @ vector).square().sum((-2, -1))
