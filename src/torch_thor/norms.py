"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options import NormControl


def length_factors(
    control: NormControl, directions: Sequence[Tensor], sources: Sequence[Tensor]
) -> list[Tensor]:
    """What each layer's direction is multiplied by to get the length that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` takes √rows · limit, so
            that an entry's root mean square is limit / √columns.
        directions: One ``[l, k, out, columns]`` a stack.
        sources: What was preconditioned, same shapes.

    Returns:
        ``[l, 1, 1, 1]`` for each stack, in its directions' type.
    """
    lengths = _all_lengths(directions)
    if control.kind == "graft":
        targets = _all_lengths(sources)
    else:
        rows = [d.shape[1] * d.shape[2] for d in directions for _ in range(d.shape[0])]
        targets = control.limit * torch.tensor(rows).to(lengths).sqrt()
    factors = torch.where(lengths > 0, targets / lengths, 1.0)
    parts = torch.split(factors.view(-1, 1, 1, 1), [len(d) for d in directions])
    return [part.to(d) for part, d in zip(parts, directions, strict=True)]


def _all_lengths(stacks: Sequence[Tensor]) -> Tensor:
    """Norms of all layers on the first stack's device (a model may span several)."""
    device = stacks[0].device
    return torch.cat([_lengths(matrices).to(device) for matrices in stacks])


def _lengths(matrices: Tensor) -> Tensor:
    """Frobenius norm of each layer, in float32 at least."""
    # Half types are summed in float32 anyway; asking for it would copy the matrices first.
    lengths: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2, 3))
    return lengths.to(torch.promote_types(lengths.dtype, torch.float32))


def clip_factor(
    limit: float,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    learning_rates: Sequence[Sequence[float]],
) -> Tensor:
    """KL clip: min(1, √(limit / Σ lr² ⟨direction, gradient⟩)), for all directions alike.

    Args:
        limit: κ.
        directions: One ``[l, k, out, columns]`` a stack.
        sources: What was preconditioned, same shapes.
        learning_rates: Of each stack, of each layer.
    """
    parts = []
    for direction, source, rates in zip(directions, sources, learning_rates, strict=True):
        dtype = torch.promote_types(direction.dtype, torch.float32)
        products = (direction.to(dtype) * source.to(dtype)).sum((1, 2, 3))
        parts.append(products @ torch.tensor(rates, dtype=dtype, device=products.device).square())
    total = torch.stack([part.to(parts[0].device) for part in parts]).sum()
    return torch.where(total > 0, (limit / total).sqrt().clamp_max(1.0), 1.0)
