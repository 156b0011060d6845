"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor.hardware import multiplies_bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options import NormControl
    from torch_thor.partition import Partition
    from torch_thor.row_averages import EvenRows


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


def length_factors(
    control: NormControl,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    cuts: Sequence[Partition | None],
    rows: Sequence[EvenRows | None],
) -> list[Tensor]:
    """What each direction is multiplied by to get the length that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` and ``"spectral"`` take
            √rows · limit, so that an entry's root mean square is limit / √columns.
        directions: One ``[l, k, out, columns]`` a stack.
        sources: What was preconditioned, same shapes.
        cuts: Of each stack, blocks of rows with lengths of their own; ``None``: a length a layer.
        rows: Of each stack, what evens its rows first; ``None`` leaves them.

    Returns:
        ``[l, 1, 1, 1]`` or ``[l, k, out, 1]`` for each stack, in its directions' type.
    """
    lengths, shapes = _all_lengths(directions, cuts, rows)
    if control.kind == "graft":
        targets, _ = _all_lengths(sources, cuts, [None] * len(cuts))
    else:
        counts = [_rows(d, cut) for d, cut in zip(directions, cuts, strict=True)]
        targets = control.limit * torch.cat(counts).to(lengths).sqrt()
    factors = torch.where(lengths > 0, targets / lengths, 1.0)
    parts = torch.split(factors, [shape.numel() for shape in shapes])
    return [
        _spread(part.view(shape), cut, row, d)
        for part, shape, d, cut, row in zip(parts, shapes, directions, cuts, rows, strict=True)
    ]


def _all_lengths(
    stacks: Sequence[Tensor],
    cuts: Sequence[Partition | None],
    rows: Sequence[EvenRows | None],
) -> tuple[Tensor, list[torch.Size]]:
    """Norms of all layers on the first stack's device (a model may span several)."""
    device = stacks[0].device
    parts = [
        _lengths(m, cut) if row is None else row.lengths
        for m, cut, row in zip(stacks, cuts, rows, strict=True)
    ]
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


def _spread(
    factors: Tensor, cut: Partition | None, rows: EvenRows | None, directions: Tensor
) -> Tensor:
    """Brings factors of layers ``[l]``, or of blocks of rows, into the form of their directions."""
    if rows is not None:
        factors = rows.factors.mul(factors.to(rows.factors).view(-1, 1, 1)).unsqueeze(-1)
    elif cut is None:
        factors = factors.view(-1, 1, 1, 1)
    else:
        inside = slice(directions.shape[2])
        factors = factors.repeat_interleave(cut.block, dim=2)[:, :, inside].unsqueeze(-1)
    return factors.to(directions)


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
