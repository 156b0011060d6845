"""Running averages of how long the rows of directions are, to make output units step alike.

The rows of all layers on a device lie in one vector: there are a few hundred of them, and calls are
what costs.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from torch_thor.curvature.factors import kept_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LEAST = 1e-12  # of a mean square that is divided by; the mean of all rows is 1
_MOST_EVENINGS = 64
_SEGMENTED = ("cpu", "cuda")  # devices with segment_reduce

Shape: TypeAlias = tuple[int, int, int]  # (L, k, rows): layers, matrices of one, rows of a matrix
Places: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]


class RowAverages:
    """Mean squares of the rows of each layer's directions (NorMuon, Li et al. 2025).

    A row's share is its mean square ÷ that of the whole layer, so that the length of a direction,
    which damping and refreshes change, does not enter.

    Attributes:
        shapes: Of each stack.
        shares: Running averages of the shares, layer by layer.
        weights: Each layer's weight of its average, see ``kept_share``.
    """

    def __init__(
        self, shapes: Sequence[Shape], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes = tuple(shapes)
        counts = [matrices * rows for layers, matrices, rows in shapes for _ in range(layers)]
        self.shares = torch.zeros(sum(counts), dtype=dtype, device=device)
        self.weights = [0.0] * len(counts)
        self._evenings: dict[Places, RowEvening] = {}

    def layer(self, stack: int, slot: int) -> tuple[int, slice]:
        """The number of a layer among all, and its rows."""
        before = self.shapes[:stack]
        matrices, rows = self.shapes[stack][1:]
        first = sum(layers * k * r for layers, k, r in before) + slot * matrices * rows
        return sum(layers for layers, _, _ in before) + slot, slice(first, first + matrices * rows)

    def evening(self, chosen: Places) -> RowEvening:
        """Returns the way of some layers: numbers of stacks, in order, each with its slots."""
        if chosen not in self._evenings:
            if len(self._evenings) == _MOST_EVENINGS:
                self._evenings.clear()
            self._evenings[chosen] = RowEvening(self, chosen)
        return self._evenings[chosen]


class RowEvening:
    """Makes the rows of some layers alike, in three calls a step: write, ``fold``, ``factors``.

    Attributes:
        lengths: ``[l, k, rows]`` of each stack, where the lengths of rows are to be written.
        counts: Rows of each layer.
    """

    def __init__(self, averages: RowAverages, chosen: Places) -> None:
        self._averages = averages
        shares = averages.shares
        found = [averages.layer(stack, slot) for stack, slots in chosen for slot in slots]
        self._layers = [number for number, _ in found]
        self.counts = [rows.stop - rows.start for _, rows in found]
        counts = torch.tensor(self.counts, device=shares.device)
        whole = len(found) == len(averages.weights)
        numbers = torch.arange(len(shares), device=shares.device)
        rows = torch.cat([numbers[inside] for _, inside in found])
        self._rows = None if whole else rows
        self._counts = counts
        self._sizes = self._counts.to(shares.dtype)
        layers = torch.arange(len(found), device=shares.device)
        self._layer_of_row = layers.repeat_interleave(counts, output_size=len(rows))
        self._flat, self._factors = shares.new_empty(len(rows)), shares.new_empty(len(rows))
        shapes = [(len(slots), *averages.shapes[stack][1:]) for stack, slots in chosen]
        parts = [layers * matrices * own for layers, matrices, own in shapes]
        self.lengths = _views(self._flat, parts, shapes)
        self._columns = [one.unsqueeze(-1) for one in _views(self._factors, parts, shapes)]

    def fold(self, decay: float, found_inf: Tensor | None = None) -> Tensor:
        """Folds the lengths of rows in, ρ being the weight of the old average.

        A direction of zeros shrinks a layer's averages alike and so changes no direction. Where
        ``found_inf`` is one, averages stay; that the host counts them as renewed shrinks or
        stretches them alike too. Returns the length of each layer's direction once its rows are
        evened.
        """
        squares = self._flat.square_()
        means = self._sums(squares).div_(self._sizes).clamp_min_(torch.finfo(squares.dtype).tiny)
        shares = squares / self._of_rows(means)
        kept = self._averages.shares
        old = kept if self._rows is None else kept[self._rows]
        if found_inf is not None:
            shares = torch.where(found_inf > 0, old, shares)
        averages = old.lerp_(shares, self._fresh(decay))
        if self._rows is not None:
            kept[self._rows] = averages
        return self._even(squares, averages)

    def weigh(self) -> Tensor:
        """Returns what ``fold`` does, by the averages as they are, which stay so."""
        kept = self._averages.shares
        return self._even(self._flat.square_(), kept if self._rows is None else kept[self._rows])

    def _even(self, squares: Tensor, averages: Tensor) -> Tensor:
        averages = averages.clamp_min(_LEAST)
        torch.rsqrt(averages, out=self._factors)
        return self._sums(squares.div_(averages)).sqrt_()

    def factors(self, scales: Tensor) -> list[Tensor]:
        """Returns ``[l, k, rows, 1]`` of each stack: what evens a row, times its layer's scale.

        The result is memory that the next step writes to.
        """
        self._factors.mul_(self._of_rows(scales))
        return self._columns

    def _of_rows(self, of_layers: Tensor) -> Tensor:
        return of_layers.index_select(0, self._layer_of_row)

    def _sums(self, of_rows: Tensor) -> Tensor:
        """Sums over the rows of each layer."""
        if of_rows.device.type in _SEGMENTED:  # in the same order on every run and rank
            sums: Tensor = torch.segment_reduce(of_rows, "sum", lengths=self._counts, unsafe=True)
            return sums
        return torch.zeros_like(self._sizes).index_add_(0, self._layer_of_row, of_rows)

    def _fresh(self, decay: float) -> float | Tensor:
        """Share of the new value in each row's average: a number where all layers have the same."""
        weights = self._averages.weights
        before = [weights[layer] for layer in self._layers]
        steps = {weight: kept_share(decay, weight) for weight in set(before)}
        for layer, weight in zip(self._layers, before, strict=True):
            weights[layer] = _as_saved(steps[weight][1], self._averages.shares.dtype)
        fresh = [1.0 - steps[weight][0] for weight in before]
        return fresh[0] if len(steps) == 1 else self._of_rows(self._sizes.new_tensor(fresh))


def _as_saved(weight: float, dtype: torch.dtype) -> float:
    """A weight as checkpoints hold it, so that a run that was resumed is the same to the bit."""
    return weight if dtype == torch.float64 else ctypes.c_float(weight).value


def _views(flat: Tensor, parts: list[int], shapes: list[Shape]) -> list[Tensor]:
    pieces = torch.split(flat, parts)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


@dataclass(frozen=True)
class StackRows:
    """The averages of one stack."""

    averages: RowAverages  # those of all stacks on its device
    number: int  # the stack's there

    @property
    def bytes(self) -> int:
        """What the averages of the stack take."""
        layers, matrices, rows = self.averages.shapes[self.number]
        return layers * matrices * rows * self.averages.shares.element_size()

    def saved(self, slot: int) -> Tensor:
        """Returns what a checkpoint has to hold of a layer: ``[k · rows + 1]``, its weight last."""
        layer, rows = self.averages.layer(self.number, slot)
        shares = self.averages.shares
        return torch.cat([shares[rows], shares.new_tensor([self.averages.weights[layer]])])

    def restore(self, slot: int, saved: Tensor) -> None:
        """Takes over what ``saved`` returned."""
        layer, rows = self.averages.layer(self.number, slot)
        self.averages.shares[rows] = saved[:-1]
        self.averages.weights[layer] = float(saved[-1])


KindOfRows: TypeAlias = tuple[torch.dtype, torch.device, Shape]


def room_for_rows(kinds: Iterable[KindOfRows]) -> list[StackRows]:
    """Makes room for stacks of (type, device, shape): one vector for each type and device."""
    shapes: dict[tuple[torch.dtype, torch.device], list[Shape]] = defaultdict(list)
    places = []
    for dtype, device, shape in kinds:
        own = shapes[dtype, device]
        places.append(((dtype, device), len(own)))
        own.append(shape)
    averages = {
        (dtype, device): RowAverages(own, dtype=dtype, device=device)
        for (dtype, device), own in shapes.items()
    }
    return [StackRows(averages[kind], number) for kind, number in places]


Chosen: TypeAlias = "tuple[StackRows, tuple[int, ...]]"


def evening_of(chosen: Sequence[Chosen]) -> RowEvening:
    """Returns the way of some layers, each stack's by their slots; their averages lie together."""
    averages = chosen[0][0].averages
    return averages.evening(tuple((rows.number, slots) for rows, slots in chosen))
