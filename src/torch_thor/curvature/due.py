"""Layers that are due: what is known of each, and all their matrices as vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from torch_thor import linalg
from torch_thor.capture.statistics import traces_of
from torch_thor.curvature.damping import mean_eigenvalue
from torch_thor.curvature.stacks import Place
from torch_thor.distributed.pooling import LayerStatistics
from torch_thor.layers.shards import is_dtensor
from torch_thor.options.trace_rule import Decision, LayerDecision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from torch_thor.capture.statistics import Batch
    from torch_thor.curvature.damping import DampingRule


@dataclass(eq=False)
class DueLayer(Place):
    """One due layer, with the statistics of all ranks since the last step."""

    damping: float  # λ
    statistics: LayerStatistics
    refresh: bool  # whether its inverses are due, and not its factors alone
    decision: Decision = Decision.UPDATE
    change: float = math.inf  # Δ of eq. 8
    fold: bool = True  # whether the batch enters the running average
    blocks: tuple[Tensor, Tensor] | None = None  # (A, G) of the batch, if the rule asked for them

    @property
    def matrices(self) -> int:
        """How many the layer has, k."""
        return self.stack.geometry.matrices

    @property
    def moves(self) -> bool:
        """Whether its statistics' gradient is anything but zero; waits for the device."""
        geometry = self.stack.geometry
        a, g = (batch.rows for batch in self.statistics.batch)
        return any(geometry.structure.moves(geometry, *pair) for pair in zip(a, g, strict=True))

    def report(self, step: int) -> LayerDecision:
        """Returns the entry of ``optimizer.last_decisions``."""
        return LayerDecision(self.layer.name, step, self.decision, self.change)


def statistics_of(
    places: Sequence[Place], batches: Sequence[Batch | None]
) -> list[LayerStatistics]:
    """What this rank knows of some layers; ``None`` where a layer was not called."""
    filled = [batch or p.stack.empty_batch() for p, batch in zip(places, batches, strict=True)]
    types = [place.stack.dtype for place in places]
    traces = traces_of([a for a, _ in filled] + [g for _, g in filled], 2 * types)
    both = zip(traces[: len(places)], traces[len(places) :], strict=True)
    return [
        LayerStatistics(
            place.layer.name,
            batch,
            own,
            seen=given is not None,
            called=place.layer.called,
            graded=place.layer.weight.grad is not None,
        )
        for place, batch, own, given in zip(places, filled, both, batches, strict=True)
    ]


def lots(due: Sequence[DueLayer]) -> list[list[DueLayer]]:
    """Sorts layers by the type and device of their factors."""
    alike: dict[object, list[DueLayer]] = {}
    for c in due:
        alike.setdefault((c.stack.dtype, c.stack.a.traces.device), []).append(c)
    return list(alike.values())


class DueMatrices:
    """The T matrices of layers of one type and device, layer by layer, all of A before all of G.

    Args:
        due: The layers, l of them.
        fresh: Whether their new statistics are to enter the averages; otherwise they have.
        looks: Whether to look for gradients that were zeroed after their backward.

    Attributes:
        starts: The number of each layer's first matrix, in A.
        finite: Whether a layer's statistics are, ``[l]``.
        counts: Whether they are and its gradient is not all zeros, ``[l]``; the averages of others
            stay as they are.
    """

    def __init__(self, due: Sequence[DueLayer], *, fresh: bool = True, looks: bool = False) -> None:
        self.due = due
        self._sizes = tuple(c.matrices for c in due)
        self.starts = [0, *accumulate(self._sizes)][:-1]
        stack = due[0].stack
        self._rule: DampingRule = stack.damping_rule
        self._dtype, self._device = stack.dtype, stack.a.traces.device
        self._kept = [c.stack.factors[side].traces[c.slot] for side in (0, 1) for c in due]
        self._traces = torch.cat(self._kept)
        new = torch.cat([c.statistics.traces[side] for side in (0, 1) for c in due])
        new_a, new_g = new.chunk(2)
        self.finite = self.counts = self._of_layers(new_a + new_g) < math.inf
        if looks:
            self.counts = self.finite & (self._are_alive() | (self._of_layers(new_g) == 0))
        if fresh:
            share = self._both(lambda c: [1.0 - c.stack.keep(c.slot)] * 2)
            own = self.counts.index_select(0, linalg.owners(self._sizes, self._device))
            mixed = self._traces.lerp(new, share)
            self._traces = torch.where(torch.cat((own, own)), mixed, self._traces)

    def _both(self, values: Callable[[DueLayer], Sequence[float]]) -> Tensor:
        """A number of each layer for A and one for G, spread over its matrices: ``[2T]``."""
        found = [(values(c), c.matrices) for c in self.due]
        flat = [own[side] for side in (0, 1) for own, count in found for _ in range(count)]
        return linalg.vector(flat, self._dtype, self._device)

    def _of_layers(self, values: Tensor) -> Tensor:
        """Sums ``[T]`` over the matrices of each layer: ``[l]``."""
        if len(self._sizes) == len(values):
            return values
        sums = values.new_zeros(len(self._sizes))
        return sums.index_add_(0, linalg.owners(self._sizes, values.device), values)

    def _are_alive(self) -> Tensor:
        """Whether a gradient is anything but zero, ``[l]``; nothing else tells of ``.data``."""
        some = self._traces.new_ones(())
        gradients = [c.layer.weight.grad for c in self.due]
        looked_at = [some if g is None or is_dtensor(g) else g for g in gradients]
        return linalg.are_nonzero(looked_at)

    @cached_property
    def _rows(self) -> Tensor:
        """Rows of each matrix of A, and of G: ``[2T]``."""
        sides = [[c.stack.geometry.columns for c in self.due], [c.stack.outputs for c in self.due]]
        flat = [
            size
            for own in sides
            for size, count in zip(own, self._sizes, strict=True)
            for _ in range(count)
        ]
        return linalg.constants(tuple(flat), self._dtype, self._device)

    @cached_property
    def means(self) -> Tensor:
        """Mean eigenvalues, ``[2T]``; 1 where there is none."""
        return mean_eigenvalue(self._traces, self._rows)

    @cached_property
    def shifts(self) -> Tensor:
        """What λ adds to the diagonals, ``[2T]``."""
        damping = self._both(lambda c: [c.damping] * 2)
        mean_a, mean_g = self.means.chunk(2)
        damping_a, damping_g = damping.chunk(2)
        shifts = torch.cat(self._rule.shifts(damping_a, mean_a, mean_g))
        factored = [c.stack.geometry.structure.is_factored for c in self.due]
        if all(factored):
            return shifts
        flags = self._both(lambda c: [c.stack.geometry.structure.is_factored] * 2)
        whole = self._rule.whole_shift(damping_g, mean_g)  # where A is 1
        return torch.where(flags > 0, shifts, torch.cat((torch.zeros_like(whole), whole)))

    def damped_traces(self, *, product: bool) -> Tensor:
        """tr(F + λI) of each layer, ``[l]``; ``product``: as the letter of eq. 8 has it."""
        if product:
            trace_a, trace_g = self._traces.chunk(2)
            rows_a, rows_g = self._rows.chunk(2)
            entries, trace = rows_a * rows_g, trace_a * trace_g
            damping = self._both(lambda c: [c.damping] * 2)[: len(trace)]
            shift = self._rule.whole_shift(damping, mean_eigenvalue(trace, entries))
            return self._of_layers(trace + shift * entries)
        damped_a, damped_g = (self._traces + self.shifts * self._rows).chunk(2)
        return self._of_layers(damped_a * damped_g)

    def store(self) -> None:
        """Writes the traces to the stacks."""
        torch._foreach_copy_(self._kept, list(self._traces.split(2 * self._sizes)))
