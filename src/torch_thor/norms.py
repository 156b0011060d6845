"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_thor.options import NormControl


def scales(
    control: NormControl | None,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    learning_rates: Sequence[Tensor],
) -> list[Tensor] | None:
    """Returns the factor of each layer's direction, or ``None`` where nothing scales.

    Args:
        control: Kind and limit.
        directions: Per stack ``[l, k, out, columns]``.
        sources: What was preconditioned, same shapes.
        learning_rates: Per stack ``[l]``; used by the KL clip alone.

    Returns:
        Per stack ``[l]``.
    """
    if control is None:
        return None
    if control.kind == "kl_clip":
        return _kl_clip(control.limit, directions, sources, learning_rates)
    lengths = [_lengths(direction) for direction in directions]
    if control.kind == "graft":
        targets = [_lengths(source) for source in sources]
    else:
        targets = [
            torch.full_like(length, control.limit * (d.shape[1] * d.shape[2]) ** 0.5)
            for length, d in zip(lengths, directions, strict=True)
        ]
    return [
        torch.where(length > 0, target / length, 1.0)
        for target, length in zip(targets, lengths, strict=True)
    ]


def _lengths(matrices: Tensor) -> Tensor:
    """Frobenius norm of each layer, in float32 at least."""
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    return torch.linalg.vector_norm(matrices, dim=(1, 2, 3), dtype=dtype)


def _kl_clip(
    limit: float,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    learning_rates: Sequence[Tensor],
) -> list[Tensor]:
    """min(1, √(limit / Σ lr² ⟨direction, gradient⟩)) for all layers alike."""
    total: Tensor | None = None
    for direction, source, lr in zip(directions, sources, learning_rates, strict=True):
        inner = (direction.to(source.dtype) * source).sum((1, 2, 3))
        part = (inner * lr.to(inner).square()).sum()
        total = part if total is None else total + part
    if total is None:
        return []
    clip = torch.where(total > 0, (limit / total).sqrt().clamp_max(1.0), 1.0)
    return [clip.expand(direction.shape[0]) for direction in directions]
