"""Norm control: how long a preconditioned layer's step is."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg
from torch_thor.curvature.row_averages import ChosenRows, plan_of
from torch_thor.linalg.timing import multiplies_bfloat16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.curvature.row_averages import RowAverages, RowPlan
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.linalg.partition import Partition
    from torch_thor.options.norm_control import NormControl


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


class Lengths:
    """What directions are multiplied by to get the lengths that ``control`` names.

    Args:
        control: ``"graft"`` takes the source's norm; ``"rms"`` and ``"spectral"`` take
            √rows · limit, so that an entry's root mean square is limit / √columns.
        cuts: Of each stack, blocks of rows with lengths of their own; ``None``: a length a layer.
        rows: Of each stack, the averages that even its rows first; ``None`` leaves them.
        held: Of each stack, rows of a matrix that count, all others being zeros; ``None``: all.
    """

    def __init__(
        self,
        control: NormControl,
        cuts: Sequence[Partition | None],
        rows: Sequence[ChosenRows | None],
        held: Sequence[int] | None = None,
    ) -> None:
        """Sorts the stacks by where their averages lie."""
        self._control = control
        self._cuts = cuts
        self._held = held
        together: dict[RowAverages | None, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            together[None if row is None else row.stack.averages].append(place)
        self._plain = together.pop(None, [])
        self._evened = [
            (places, plan_of([row for place in places if (row := rows[place]) is not None]))
            for places in together.values()
        ]
        self._targets: dict[object, Tensor] = {}

    def factors(self, directions: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``[l, 1, 1, 1]`` or ``[l, k, out, 1]`` of each stack, in its directions' type.

        Args:
            directions: One ``[l, k, out, columns]`` a stack.
            sources: What was preconditioned, same shapes.
        """
        factors = [directions[0]] * len(directions)
        if self._plain:
            own, before = [[side[n] for n in self._plain] for side in (directions, sources)]
            for place, found in zip(self._plain, self._by_layers(own, before), strict=True):
                factors[place] = found.to(directions[place])
        for places, plan in self._evened:
            own, before = [[side[n] for n in places] for side in (directions, sources)]
            for place, found in zip(places, self._by_rows(own, before, plan), strict=True):
                factors[place] = found.to(directions[place])
        return factors

    def _by_rows(
        self, directions: Sequence[Tensor], sources: Sequence[Tensor], plan: RowPlan
    ) -> list[Tensor]:
        """The factors ``[l, k, out, 1]`` of directions whose rows are evened."""
        for direction, lengths in zip(directions, plan.lengths, strict=True):
            if direction.dtype == lengths.dtype and direction.device == lengths.device:
                torch.linalg.vector_norm(direction, dim=3, out=lengths)
            else:
                lengths.copy_(torch.linalg.vector_norm(direction, dim=3))
        lengths = plan.fold(self._control.row_decay or 0.0)
        if self._control.kind == "graft":
            targets = torch.cat([_lengths(source, None).to(lengths) for source in sources])
        else:
            targets = self._fixed(plan, plan.counts, lengths)
        return plan.factors(_ratios(targets, lengths))

    def _by_layers(self, directions: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
        """The factors ``[l, 1, 1, 1]``, or those of blocks of rows."""
        cuts = [self._cuts[place] for place in self._plain]
        lengths, shapes = _all_lengths(directions, cuts)
        if self._control.kind == "graft":
            targets, _ = _all_lengths(sources, cuts)
        else:
            held = [None if self._held is None else self._held[n] for n in self._plain]
            parts = zip(directions, cuts, held, strict=True)
            counts = [n for direction, cut, own in parts for n in _rows(direction.shape, cut, own)]
            targets = self._fixed(None, counts, lengths)
        factors = _ratios(targets, lengths)
        pieces = torch.split(factors, [shape.numel() for shape in shapes])
        return [
            _spread(piece.view(shape), cut, direction.shape[2])
            for piece, shape, direction, cut in zip(pieces, shapes, directions, cuts, strict=True)
        ]

    def _fixed(self, key: object, counts: Sequence[int], like: Tensor) -> Tensor:
        """√rows · limit for the numbers of rows behind each length: the same in every step."""
        if key not in self._targets:
            self._targets[key] = like.new_tensor(counts).sqrt_().mul_(self._control.limit)
        return self._targets[key]


def row_cut(stack: LayerStack, control: NormControl) -> Partition | None:
    """The blocks of rows of a stack that take lengths of their own; ``None`` where layers do."""
    per = control.per or ("layer" if stack.shard is None else "rows")
    return stack.g.partition if per == "rows" else None


def rows_of(stack: LayerStack, slots: list[int], control: NormControl) -> ChosenRows | None:
    """The row averages of some layers; ``None`` where rows stay as they are."""
    left = control.row_decay is None or not stack.geometry.structure.is_factored
    return None if left else ChosenRows(stack.rows, tuple(slots))


def _ratios(targets: Tensor, lengths: Tensor) -> Tensor:
    """Targets ÷ lengths; 1 for a direction of zeros."""
    return torch.div(targets, lengths).nan_to_num_(nan=1.0, posinf=1.0)


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
def _rows(shape: torch.Size, cut: Partition | None, held: int | None) -> list[int]:
    """Rows behind each length."""
    layers, count, rows, _ = shape
    rows = rows if held is None else held
    if cut is None:
        return [count * rows] * layers
    ends = [(block + 1) * cut.block for block in range(cut.count)]
    return [max(cut.block - max(end - rows, 0), 0) for end in ends] * (layers * count)


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
        parts.append(products @ linalg.vector(rates, dtype, products.device).square())
    total = torch.stack([part.to(parts[0].device) for part in parts]).sum()
    return torch.where(total > 0, (limit / total).sqrt().clamp_max(1.0), 1.0)
