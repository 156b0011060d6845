"""Singular values made alike, as Muon does."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_thor.linalg.timing import multiplies_bfloat16

# Jordan et al. 2024 (Muon): brings singular values in (0, 1] to about 0.7 … 1.2 in five steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int) -> Tensor:
    """Makes the nonzero singular values of each matrix about alike, by products alone.

    Newton–Schulz iteration X ← aX + (bXXᵀ + c(XXᵀ)²)X from X / ‖X‖, in bfloat16 where the
    hardware multiplies it.

    Args:
        matrices: ``[l, k, out, columns]``.
        iterations: Steps.
    """
    a, b, c = _QUINTIC
    wide = matrices.shape[2] <= matrices.shape[3]
    flat = (matrices if wide else matrices.mT).flatten(0, 1)
    lengths = torch.linalg.vector_norm(flat, dim=(1, 2), keepdim=True)
    x = flat / lengths.clamp_min(torch.finfo(flat.dtype).tiny)
    if x.dtype == torch.float32 and multiplies_bfloat16(x.device):
        x = x.to(torch.bfloat16)
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return result.reshape(matrices.shape)
