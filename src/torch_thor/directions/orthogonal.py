"""Singular values made alike, as Muon does."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor.linalg.partition import Partition
from torch_thor.linalg.timing import multiplies_bfloat16, multiplies_bfloat16_in_tiles

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
# Rows below which a CPU's products in bfloat16 cost more to set up than they save; in tiles (AMX).
_FEW_ROWS, _FEW_ROWS_IN_TILES = 192, 128
# Squares of small singular values drown in rounding, which more steps would make large.
_STEPS_OF_GRAM = 4
_SAFE_LENGTHS = (1e-15, 1e15)  # whose squares, and those of what they are made of, are normal

Quintic: TypeAlias = tuple[float, float, float]


def orthogonalize(
    stacks: Sequence[Tensor], iterations: int, tiles: Sequence[int | None]
) -> list[Tensor]:
    """Makes the nonzero singular values of matrices about alike, by products alone.

    Newton–Schulz iteration X ← aX + (bXXᵀ + c(XXᵀ)²)X from X / ‖X‖, in bfloat16 where the
    hardware multiplies it and that pays. In wider types, matrices that are much longer than wide
    are multiplied twice alone: polynomials of up to four steps are those of XXᵀ, which is small.

    Args:
        stacks: Matrices ``[l, k, out, columns]`` of some shapes.
        iterations: Steps; four make singular values alike that are 0.0026 of the length or more.
        tiles: Of each stack, rows, at most, that are a matrix of their own; ``None``, or as many
            as there are columns: all of one.
    """
    first = max(len(_SAFE) - iterations, 0)
    quintics = _SAFE[:1] * (iterations - len(_SAFE)) + _SAFE[first:]
    alike: dict[object, list[int]] = defaultdict(list)
    for place, stack in enumerate(stacks):
        alike[stack.dtype, stack.device].append(place)
    found = list(stacks)
    for places in alike.values():
        cuts = [_cut(*stacks[n].shape[-2:], tile=tiles[n]) for n in places]
        cut_up = [_in_tiles(stacks[n], cut) for n, cut in zip(places, cuts, strict=True)]
        own = _of_one_kind(cut_up, _TOPS[first], quintics)
        for place, cut, one in zip(places, cuts, own, strict=True):
            found[place] = _together(one.to(stacks[place].dtype), cut, stacks[place].shape)
    return found


def _cut(rows: int, columns: int, *, tile: int | None) -> Partition:
    """Tiles that hold no rows of zeros, if some of half the size or more do not."""
    # Tiles that are longer than wide would cost more than all rows together.
    if tile is None or tile >= min(rows, columns):
        return Partition(rows, rows)
    for own in range(tile, tile // 2, -1):
        if rows % own == 0:
            return Partition(rows, own)
    return Partition.of(rows, tile)


def _in_tiles(stack: Tensor, cut: Partition) -> Tensor:
    """A stack's tiles ``[b, rows, columns]``; rows of zeros, which stay so, fill the last ones."""
    padded = pad(stack, (0, 0, 0, cut.padding)) if cut.padding else stack
    return padded.reshape(-1, cut.block, stack.shape[3])


def _together(tiles: Tensor, cut: Partition, shape: torch.Size) -> Tensor:
    """Inverts ``_in_tiles``."""
    return tiles.reshape(*shape[:2], cut.padded, shape[3])[:, :, : cut.size]


def _of_one_kind(
    matrices: Sequence[Tensor], top: float, quintics: Sequence[Quintic]
) -> list[Tensor]:
    """Matrices ``[b, out, columns]`` of one type and device."""
    is_wide = [one.shape[1] <= one.shape[2] for one in matrices]
    scaled, scales = _with_scales(matrices, top)
    x = [one if wide else one.mT for one, wide in zip(scaled, is_wide, strict=True)]
    by_rows: dict[int, list[int]] = defaultdict(list)
    for place, (one, scale) in enumerate(zip(x, scales, strict=True)):
        if _goes_in_half(one):
            x[place] = _multiplied_whole((one * scale).to(torch.bfloat16), quintics)
        # By products: a step takes 2m²n + m³, and a step of XXᵀ four of m³.
        elif 2 * one.shape[2] > 3 * one.shape[1]:
            by_rows[one.shape[1]].append(place)
        else:
            x[place] = _multiplied_whole(_wide(one) * _wide(scale), quintics)
    for places in by_rows.values():
        own = _multiplied_twice([x[n] for n in places], [scales[n] for n in places], quintics)
        for place, one in zip(places, own, strict=True):
            x[place] = one
    return [one if wide else one.mT for one, wide in zip(x, is_wide, strict=True)]


def _goes_in_half(x: Tensor) -> bool:
    """Whether matrices ``[b, m, n]`` are multiplied in bfloat16."""
    if x.dtype not in {torch.float32, torch.bfloat16}:
        return False
    if not multiplies_bfloat16(x.device):
        return False
    if x.device.type != "cpu":
        return True
    return x.shape[1] >= (_FEW_ROWS_IN_TILES if multiplies_bfloat16_in_tiles() else _FEW_ROWS)


def _with_scales(stacks: Sequence[Tensor], top: float) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Matrices whose squares are normal numbers, and what gives them a length, ``[b, 1, 1]``."""
    first = stacks[0]
    wide = torch.finfo(first.dtype).max > _SAFE_LENGTHS[1] ** 2
    if wide and first.device.type == "cpu" and not torch.compiler.is_compiling():
        lengths = torch.cat([torch.linalg.vector_norm(one, dim=(1, 2)) for one in stacks])
        low, high = lengths.aminmax()
        if _SAFE_LENGTHS[0] < low.item() and high.item() < _SAFE_LENGTHS[1]:
            counts = [len(one) for one in stacks]
            return stacks, (top / lengths).view(-1, 1, 1).split(counts)
    # Squares of what momentum has decayed to would be zero, those of what has grown infinite.
    least = torch.finfo(first.dtype).tiny
    found = [one / one.abs().amax((1, 2), keepdim=True).clamp_min(least) for one in stacks]
    norms = [torch.linalg.vector_norm(one, dim=(1, 2), keepdim=True) for one in found]
    return found, [top / norm.clamp_min(0.5) for norm in norms]  # at least 1, or zero


def _multiplied_whole(x: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """The steps of ``[b, m, n]``, n not less than m."""
    for a, b, c in quintics:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _multiplied_twice(
    matrices: Sequence[Tensor], scales: Sequence[Tensor], quintics: Sequence[Quintic]
) -> list[Tensor]:
    """The same by steps of XXᵀ, of matrices with one m that are still to be scaled.

    Small products cost a call more than they compute, so those of all are in one.
    """
    x, scale = [_wide(one) for one in matrices], _wide(torch.cat(list(scales)))
    counts = [len(one) for one in x]
    for number in range(0, len(quintics), _STEPS_OF_GRAM):
        some, grams = quintics[number : number + _STEPS_OF_GRAM], _grams(x, counts)
        if number:
            polynomials = _polynomials(grams, some)
        else:
            polynomials = _polynomials(grams.mul_(scale.square()), some).mul_(scale)
        parts = polynomials.split(counts)
        x = [torch.bmm(part, one) for part, one in zip(parts, x, strict=True)]
    return x


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _grams(x: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """All XXᵀ in a row, ``[Σ b, m, m]``."""
    first = x[0]
    if len(x) == 1:
        return torch.bmm(first, first.mT)
    grams = first.new_empty(sum(counts), first.shape[1], first.shape[1])
    for own, one in zip(grams.split(counts), x, strict=True):
        torch.bmm(one, one.mT, out=own)
    return grams


def _polynomials(gram: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """Π p of S = XXᵀ for some steps, whose polynomials commute: X ← pX and S ← p²S."""
    product = polynomial = _polynomial(gram, quintics[0])
    for quintic in quintics[1:]:
        gram = torch.bmm(torch.bmm(gram, polynomial), polynomial)
        polynomial = _polynomial(gram, quintic)
        product = torch.bmm(product, polynomial)
    return product


def _polynomial(gram: Tensor, quintic: Quintic) -> Tensor:
    a, b, c = quintic
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=1, dim2=2).add_(a)
    return polynomial
