"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor.hardware import multiplies_bfloat16
from torch_thor.row_averages import plan_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options import NormControl
    from torch_thor.partition import Partition
    from torch_thor.row_averages import ChosenRows, RowAverages, RowPlan


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
    rows: Sequence[ChosenRows | None],
) -> list[Tensor]:
    """What each direction is multiplied by to get the length that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` and ``"spectral"`` take
            √rows · limit, so that an entry's root mean square is limit / √columns.
        directions: One ``[l, k, out, columns]`` a stack.
        sources: What was preconditioned, same shapes.
        cuts: Of each stack, blocks of rows with lengths of their own; ``None``: a length a layer.
        rows: Of each stack, the averages that even its rows first; ``None`` leaves them.

    Returns:
        ``[l, 1, 1, 1]`` or ``[l, k, out, 1]`` for each stack, in its directions' type.
    """
    together: dict[RowAverages | None, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        together[None if row is None else row.stack.averages].append(place)
    factors = [directions[0]] * len(directions)
    for places in together.values():
        chosen = [row for place in places if (row := rows[place]) is not None]
        own, before = [[side[place] for place in places] for side in (directions, sources)]
        if chosen and control.row_decay is not None:
            found = _even_factors(control, own, before, plan_of(chosen), control.row_decay)
        else:
            found = _factors(control, own, before, [cuts[place] for place in places])
        for place, factor in zip(places, found, strict=True):
            factors[place] = factor.to(directions[place])
    return factors


def _even_factors(
    control: NormControl,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    plan: RowPlan,
    decay: float,
) -> list[Tensor]:
    """The factors ``[l, k, out, 1]`` of directions whose rows are evened."""
    for direction, lengths in zip(directions, plan.lengths, strict=True):
        if direction.dtype == lengths.dtype and direction.device == lengths.device:
            torch.linalg.vector_norm(direction, dim=3, out=lengths)
        else:
            lengths.copy_(torch.linalg.vector_norm(direction, dim=3))
    lengths = plan.fold(decay)
    if control.kind == "graft":
        targets = torch.cat([_lengths(source, None).to(lengths) for source in sources])
    else:
        targets = plan.sizes.sqrt().mul_(control.limit)
    return plan.factors(torch.where(lengths > 0, targets / lengths, 1.0))


def _factors(
    control: NormControl,
    directions: Sequence[Tensor],
    sources: Sequence[Tensor],
    cuts: Sequence[Partition | None],
) -> list[Tensor]:
    """The factors ``[l, 1, 1, 1]``, or those of blocks of rows."""
    lengths, shapes = _all_lengths(directions, cuts)
    if control.kind == "graft":
        targets, _ = _all_lengths(sources, cuts)
    else:
        counts = [n for d, cut in zip(directions, cuts, strict=True) for n in _rows(d.shape, cut)]
        targets = control.limit * lengths.new_tensor(counts).sqrt_()
    factors = torch.where(lengths > 0, targets / lengths, 1.0)
    parts = torch.split(factors, [shape.numel() for shape in shapes])
    return [
        _spread(part.view(shape), cut, d.shape[2])
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


@lru_cache(maxsize=256)
def _rows(shape: torch.Size, cut: Partition | None) -> list[int]:
    """Rows behind each length."""
    layers, count, rows, _ = shape
    if cut is None:
        return [count * rows] * layers
    ends = [(block + 1) * cut.block for block in range(cut.count)]
    return [cut.block - max(end - rows, 0) for end in ends] * (layers * count)


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
