"""Lengths of directions: those of all layers set together, in few calls."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor.curvature.row_averages import evening_of
from torch_thor.linalg.foreach import ALL, norms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch_thor.curvature.row_averages import Chosen, RowAverages, RowEvening
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import LengthControl
    from torch_thor.linalg.partition import Partition


class Lengths:
    """What directions are multiplied by to get the lengths that a control names.

    Args:
        control: Says how long.
        cuts: Of each stack, blocks of rows with lengths of their own; ``None``: a length a layer.
        rows: Of each stack, the averages that even its rows first; ``None`` leaves them.
        held: Of each stack, rows of a matrix that count, all others being zeros; ``None``: all.
    """

    def __init__(
        self,
        control: LengthControl,
        cuts: Sequence[Partition | None],
        rows: Sequence[Chosen | None],
        held: Sequence[int] | None = None,
    ) -> None:
        self._control = control
        self._cuts = cuts
        self._held = held
        together: dict[RowAverages | None, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            together[None if row is None else row[0].averages].append(place)
        self._plain = together.pop(None, [])
        self._evened = [
            (places, evening_of([row for place in places if (row := rows[place]) is not None]))
            for places in together.values()
        ]
        self._fixed: dict[RowEvening | None, Tensor | None] = {}

    def factors(
        self,
        directions: Sequence[Tensor],
        sources: Sequence[Tensor],
        found_inf: Tensor | None = None,
        *,
        again: bool = False,
    ) -> list[Tensor]:
        """Returns ``[l, 1, 1, 1]`` or ``[l, k, out, 1]`` of each stack, in its directions' type.

        Directions, and sources that were preconditioned, are ``[l, k, out, columns]`` a stack.
        Where ``found_inf`` is one they are not finite, and no average takes them in; nor does it
        where they are looked at ``again``.
        """
        found: dict[int, Tensor] = {}
        if self._plain:
            own, before = [[side[n] for n in self._plain] for side in (directions, sources)]
            found.update(zip(self._plain, self._by_layers(own, before), strict=True))
        for places, evening in self._evened:
            own, before = [[side[n] for n in places] for side in (directions, sources)]
            _write_lengths(own, evening)
            decay = self._control.options.row_decay or 0.0
            lengths = evening.weigh() if again else evening.fold(decay, found_inf)
            found.update(zip(places, self._by_rows(lengths, before, evening), strict=True))
        return [found[place].to(direction) for place, direction in enumerate(directions)]

    def _by_rows(
        self,
        lengths: Tensor,
        sources: Sequence[Tensor],
        evening: RowEvening,
    ) -> list[Tensor]:
        """The factors ``[l, k, out, 1]`` of directions of such lengths once rows are evened."""
        targets = self._targets(evening, lambda: evening.counts, lengths)
        if targets is None:
            targets = torch.cat([_lengths(source, None).to(lengths) for source in sources])
        return evening.factors(_ratios(targets, lengths))

    def _by_layers(self, directions: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
        """The factors ``[l, 1, 1, 1]``, or those of blocks of rows."""
        cuts = [self._cuts[place] for place in self._plain]
        lengths, shapes = _all_lengths(directions, cuts)
        targets = self._targets(None, lambda: self._counts(directions, cuts), lengths)
        if targets is None:
            targets, _ = _all_lengths(sources, cuts)
        factors = _ratios(targets.to(lengths.dtype), lengths)
        pieces = torch.split(factors, [shape.numel() for shape in shapes])
        return [
            _spread(piece.view(shape), cut, direction.shape[2])
            for piece, shape, direction, cut in zip(pieces, shapes, directions, cuts, strict=True)
        ]

    def _counts(self, directions: Sequence[Tensor], cuts: Sequence[Partition | None]) -> list[int]:
        """Rows behind each length of the stacks whose rows stay as they are."""
        held = [None if self._held is None else self._held[n] for n in self._plain]
        parts = zip(directions, cuts, held, strict=True)
        return [rows for direction, cut, own in parts for rows in _rows(direction.shape, cut, own)]

    def _targets(
        self, evening: RowEvening | None, counts: Callable[[], Sequence[int]], like: Tensor
    ) -> Tensor | None:
        """The lengths that are the same in every step; ``None``: those of the sources."""
        if evening not in self._fixed:
            said = [self._control.fixed_length(rows) for rows in counts()]
            fixed = [length for length in said if length is not None]
            self._fixed[evening] = like.new_tensor(fixed) if len(fixed) == len(said) else None
        return self._fixed[evening]


def _write_lengths(directions: Sequence[Tensor], evening: RowEvening) -> None:
    """Tells it how long the rows of directions are."""
    for direction, lengths in zip(directions, evening.lengths, strict=True):
        if direction.dtype == lengths.dtype and direction.device == lengths.device:
            torch.linalg.vector_norm(direction, dim=3, out=lengths)
        else:
            lengths.copy_(torch.linalg.vector_norm(direction, dim=3))


def row_cut(stack: LayerStack, control: LengthControl) -> Partition | None:
    """The blocks of rows of a stack that take lengths of their own; ``None`` where layers do."""
    per = control.options.per or ("layer" if stack.shard is None else "rows")
    return stack.g.partition if per == "rows" else None


def rows_of(stack: LayerStack, slots: list[int], control: LengthControl) -> Chosen | None:
    """The row averages of some layers; ``None`` where rows stay as they are."""
    left = control.options.row_decay is None or not stack.geometry.structure.is_factored
    return None if left else (stack.rows, tuple(slots))


def _ratios(targets: Tensor, lengths: Tensor) -> Tensor:
    """Targets ÷ lengths; 1 for a direction of zeros."""
    return torch.div(targets, lengths).nan_to_num_(nan=1.0, posinf=1.0)


def _all_lengths(
    stacks: Sequence[Tensor], cuts: Sequence[Partition | None]
) -> tuple[Tensor, list[torch.Size]]:
    """Norms of all layers on the first stack's device (a model may span several)."""
    device = stacks[0].device
    if not any(cuts) and len({(one.dtype, one.device) for one in stacks}) == 1:
        layers = [layer for one in stacks for layer in one.unbind(0)]
        return torch.stack(norms(ALL, layers)), [torch.Size((len(one),)) for one in stacks]
    parts = [_lengths(m, cut) for m, cut in zip(stacks, cuts, strict=True)]
    return torch.cat([part.flatten().to(device) for part in parts]), [p.shape for p in parts]


def _lengths(matrices: Tensor, cut: Partition | None) -> Tensor:
    """Frobenius norms ``[l]``, or ``[l, k, n]`` of blocks of rows, in float32 at least."""
    # Half types are summed in float32 anyway; asking for it would copy the matrices first.
    if cut is None:
        lengths: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2, 3))
    else:
        padded = pad(matrices, (0, 0, 0, cut.padding)) if cut.padding else matrices
        blocks = padded.reshape(*padded.shape[:2], cut.count, cut.block, -1)
        lengths = torch.linalg.vector_norm(blocks, dim=(3, 4))
    return lengths.to(torch.promote_types(lengths.dtype, torch.float32))


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
