"""Which tensors go into one call: those that torch's own optimizers step together.

torch steps a list in one call (``torch._foreach_*``) where every tensor is exactly a ``Tensor`` or
a ``Parameter`` on a device with kernels for lists. So do we, per type and device, and on the CPU
too for real tensors, where one call saves Python. All others go one by one: subclasses, whose own
rules such calls may lack, sparse and mkldnn layouts, complex tensors on the CPU, other devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

_TYPES = frozenset({Tensor, nn.Parameter})
_DEVICES = frozenset({"cuda", "xpu", "mtia"})  # torch's, without backends of third parties
_ASYNCHRONOUS = {"cuda", "xpu"}


def is_asynchronous(device: torch.device) -> bool:
    """Whether the host runs ahead of a device, and reading a number of its makes it wait."""
    return device.type in _ASYNCHRONOUS


@dataclass(frozen=True)
class Lot:
    """Tensors of a list that are treated alike."""

    places: tuple[int, ...] | None  # in the list; None: all of it
    together: bool  # whether one call takes them all; otherwise they go one by one

    def take(self, values: Sequence[T]) -> list[T]:
        """Returns what a list holds at the lot's places."""
        if self.places is None:
            return values if isinstance(values, list) else list(values)
        return [values[place] for place in self.places]


Lots: TypeAlias = tuple[Lot, ...]
ALL: Lots = (Lot(None, together=True),)
ONE_BY_ONE: Lots = (Lot(None, together=False),)


def lots_of(*lists: Sequence[Tensor]) -> Lots:
    """Sorts the places of some lists of equal length, whose tensors meet place by place."""
    alike: dict[object, list[int]] = {}
    for place, tensors in enumerate(zip(*lists, strict=True)):
        fits = all(map(_fits, tensors)) and len({tensor.device for tensor in tensors}) == 1
        kind = (tensors[0].device, *(tensor.dtype for tensor in tensors)) if fits else None
        alike.setdefault(kind, []).append(place)
    if len(alike) == 1:
        return (Lot(None, together=None not in alike),)
    return tuple(Lot(tuple(places), together=kind is not None) for kind, places in alike.items())


def go_together(tensors: Sequence[Tensor]) -> bool:
    """Says whether one call may take all tensors of a list."""
    return all(lot.places is None and lot.together for lot in lots_of(tensors))


def _fits(tensor: Tensor) -> bool:
    plain = type(tensor) in _TYPES and tensor.layout == torch.strided
    on_cpu = tensor.device.type == "cpu" and not tensor.is_complex()
    return plain and (on_cpu or tensor.device.type in _DEVICES)


class Sorter:
    """Sorts the gradients of step after step, again only where their kinds have changed."""

    def __init__(self) -> None:
        self._kinds: tuple[list[object], ...] = ()
        self._lots: Lots = ()

    def sort(self, tensors: Sequence[Tensor]) -> Lots:
        """Returns the lots of a list; the same object as long as the list's kinds are the same."""
        kinds: tuple[list[object], ...] = (
            list(map(type, tensors)),
            [tensor.dtype for tensor in tensors],
            [tensor.layout for tensor in tensors],
        )
        # A model that moves to another device as a whole leaves the lots as they are.
        if kinds != self._kinds:
            self._kinds, self._lots = kinds, lots_of(tensors)
        return self._lots


def add(
    lots: Lots, tensors: Sequence[Tensor], others: Sequence[Tensor], *, alpha: float = 1.0
) -> list[Tensor]:
    """Returns tensors + alpha · others."""
    sums = list(tensors)
    for lot in lots:
        own, more = lot.take(tensors), lot.take(others)
        if lot.together:
            found = list(torch._foreach_add(own, more, alpha=alpha))
        else:
            found = [torch.add(x, y, alpha=alpha) for x, y in zip(own, more, strict=True)]
        if lot.places is None:
            return found
        for place, value in zip(lot.places, found, strict=True):
            sums[place] = value
    return sums


def add_(
    lots: Lots, tensors: Sequence[Tensor], others: Sequence[Tensor], *, alpha: float = 1.0
) -> None:
    """Adds alpha · others to tensors."""
    for lot in lots:
        own, more = lot.take(tensors), lot.take(others)
        if lot.together:
            torch._foreach_add_(own, more, alpha=alpha)
        else:
            for tensor, other in zip(own, more, strict=True):
                tensor.add_(other, alpha=alpha)


def mul_(lots: Lots, tensors: Sequence[Tensor], factor: float) -> None:
    """Multiplies tensors by a number."""
    for lot in lots:
        if lot.together:
            torch._foreach_mul_(lot.take(tensors), factor)
        else:
            for tensor in lot.take(tensors):
                tensor.mul_(factor)


def renew_(lots: Lots, tensors: Sequence[Tensor], others: Sequence[Tensor], factor: float) -> None:
    """Sets tensors to factor · tensors + others, those that go one by one in a single pass."""
    for lot in lots:
        own, more = lot.take(tensors), lot.take(others)
        if lot.together:
            torch._foreach_mul_(own, factor)
            torch._foreach_add_(own, more)
            continue
        for tensor, other in zip(own, more, strict=True):
            if _fits(tensor) and _fits(other):
                torch.add(other, tensor, alpha=factor, out=tensor)
            else:
                tensor.mul_(factor).add_(other)


def norms(lots: Lots, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the Euclidean norms, lot by lot, in float32 at least."""
    found: list[Tensor] = []
    for lot in lots:
        own = [_entries(tensor) for tensor in lot.take(tensors)]
        if lot.together and own:
            found += torch._foreach_norm(own, dtype=_wide(own[0]))
        else:
            found += [torch.linalg.vector_norm(entry, dtype=_wide(entry)) for entry in own]
    return found


def mark_nonfinite(lots: Lots, tensors: Sequence[Tensor]) -> Tensor:
    """Returns one where a tensor, of at least one, holds NaN or Inf, else zero; waits for nothing.

    The Euclidean norm, which must not overflow either, is vectorized where the largest entry is
    not. One mark stands for all norms.
    """
    marks = []
    for lot in lots:
        found = norms((lot,), tensors)
        for lengths in [found] if lot.together else [[length] for length in found]:
            # The lengths have served, so what they are scaled by is nothing.
            mark, scale = torch.zeros(2, dtype=torch.float32, device=lengths[0].device).unbind()
            torch._amp_foreach_non_finite_check_and_unscale_(lengths, mark, scale)
            marks.append(mark)
    for other in marks[1:]:
        marks[0].copy_(torch.maximum(marks[0], other.to(marks[0].device, non_blocking=True)))
    return marks[0]


def _entries(tensor: Tensor) -> Tensor:
    """A dense real tensor of the same norm."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
