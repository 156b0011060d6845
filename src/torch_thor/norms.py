"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options import NormControl
    from torch_thor.partition import Partition


def length_factors(
    control: NormControl,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    cuts: Sequence[Partition | None],
) -> list[Tensor]:
    """What each direction is multiplied by to get the length that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` takes √rows · limit, so
            that an entry's root mean square is limit / √columns.
        directions: One ``[l, k, out, columns]`` a stack.
        sources: What was preconditioned, same shapes.
        cuts: Of each stack, blocks of rows with lengths of their own; ``None``: a length a layer.

    Returns:
        ``[l, 1, 1, 1]`` or ``[l, k, out, 1]`` for each stack, in its directions' type.
    """
    lengths, shapes = _all_lengths(directions, cuts)
    if control.kind == "graft":
        targets, _ = _all_lengths(sources, cuts)
    else:
        rows = [_rows(d, cut) for d, cut in zip(directions, cuts, strict=True)]
        targets = control.limit * torch.cat(rows).to(lengths).sqrt()
    factors = torch.where(lengths > 0, targets / lengths, 1.0)
    parts = torch.split(factors, [shape.numel() for shape in shapes])
    return [
        _spread(part.view(shape).to(d), cut, d.shape[2])
        for part, shape, d, cut in zip(parts, shapes, directions, cuts, strict=True)
    ]


def _all_lengths(
    stacks: Sequence[Tensor], cuts: Sequence[Partition | None]
) -> tuple[Tensor, list[torch.Size]]:
    """Norms of all layers on the first stack's device (a model may span several)."""
    device = stacks[0].device
    parts = [_lengths(m, cut) for m, cut in zip(stacks, cuts, strict=True)]
    return torch.cat([part.flatten().to(device) for part in parts]), [p.shape for p in parts]


def _lengths(matrices: Tensor, cut: Partition | None) -> Tensor:
    """Frobenius norms ``[l]``, or ``[l, k, n]`` of blocks of rows, in float32 at least."""
    # Half types are summed in float32 anyway; asking for it would copy the matrices first.
    if cut is None:
        lengths: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2, 3))
    else:
        padded = pad(matrices, (0, 0, 0, cut.padding)) if cut.padding else matrices
        blocks = padded.view(*padded.shape[:2], cut.count, cut.block, -1)
        lengths = torch.linalg.vector_norm(blocks, dim=(3, 4))
    return lengths.to(torch.promote_types(lengths.dtype, torch.float32))


def _rows(matrices: Tensor, cut: Partition | None) -> Tensor:
    """Rows behind each length."""
    layers, count, rows, _ = matrices.shape
    if cut is None:
        return torch.full((layers,), count * rows)
    ends = torch.arange(1, cut.count + 1) * cut.block
    inside = cut.block - (ends - rows).clamp_min(0)
    return inside.expand(layers, count, -1).flatten()


def _spread(factors: Tensor, cut: Partition | None, rows: int) -> Tensor:
    if cut is None:
        return factors.view(-1, 1, 1, 1)
    return factors.repeat_interleave(cut.block, dim=2)[:, :, :rows].unsqueeze(-1)


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
