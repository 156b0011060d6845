"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_thor.options import NormControl


def set_lengths(control: NormControl, direction: Tensor, source: Tensor) -> None:
    """Rescales each layer's direction in place to the length that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` takes √(rows) · limit, so
            that an entry's root mean square is limit / √columns. ``"kl_clip"`` depends on
            all layers together and leaves lengths alone here (see ``kl_clip``).
        direction: ``[l, k, out, columns]``.
        source: What was preconditioned, same shape.
    """
    if control.kind == "kl_clip":
        return
    length = _lengths(direction)
    if control.kind == "graft":
        target = _lengths(source)
    else:
        rows = direction.shape[1] * direction.shape[2]
        target = torch.full_like(length, control.limit * rows**0.5)
    factor = torch.where(length > 0, target / length, 1.0)
    direction.mul_(factor.to(direction.dtype)[:, None, None, None])


def _lengths(matrices: Tensor) -> Tensor:
    """Frobenius norm of each layer, in float32 at least."""
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2, 3), dtype=dtype)
    return lengths


def inner_product(direction: Tensor, source: Tensor, learning_rates: list[float]) -> Tensor:
    """Σ lr² ⟨direction, source⟩ over the layers of a stack, for the KL clip."""
    dtype = torch.promote_types(direction.dtype, torch.float32)
    products = (direction.to(dtype) * source.to(dtype)).sum((1, 2, 3))
    squares = torch.tensor(learning_rates, dtype=dtype, device=direction.device).square()
    return products @ squares


def kl_clip(limit: float, total: Tensor) -> Tensor:
    """min(1, √(limit / Σ lr² ⟨direction, gradient⟩)), 1 where the sum is not positive."""
    return torch.where(total > 0, (limit / total).sqrt().clamp_max(1.0), 1.0)
