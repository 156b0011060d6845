"""Which rows of a call count: all of them, or a seeded sample of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowPlan:
    """Rows that one call contributes to the statistics.

    Args:
        samples: N, samples in the call.
        positions: T, shared positions of each sample.
        index: ``[r]`` flat row numbers in 0..N·T-1 on the CPU; ``None`` takes all.
        reduce: K-FAC-reduce: inputs are averaged and gradients summed over positions.
        output_shape: Shape of the call's output, for layers whose positions don't follow
            from their input.
    """

    samples: int
    positions: int
    index: Tensor | None = None
    reduce: bool = False
    output_shape: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows that the taken ones stand for."""
        return self.samples if self.reduce else self.samples * self.positions

    @property
    def scale(self) -> float:
        """Rows stood for ÷ rows taken."""
        return 1.0 if self.index is None else self.rows / len(self.index)

    def coordinates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Sample and position number of each taken row, as two ``[r]`` tensors."""
        if self.index is None:
            flat = torch.arange(self.samples * self.positions, device=device)
        else:
            flat = self.index.to(device, non_blocking=True)
        return flat // self.positions, flat % self.positions

    def take_inputs(self, table: Tensor) -> Tensor:
        """Takes input rows from ``[N, T, d]``: ``[r, d]``."""
        return table.mean(1) if self.reduce else self.take(table)

    def take_gradients(self, table: Tensor) -> Tensor:
        """Takes output gradient rows from ``[N, T, d]``: ``[r, d]``."""
        return table.sum(1) if self.reduce else self.take(table)

    def reduce_inputs(self, rows: Tensor) -> Tensor:
        """Averages gathered rows ``[k, N·T, d]`` over positions where asked to."""
        return self._per_sample(rows).mean(2) if self.reduce else rows

    def reduce_gradients(self, rows: Tensor) -> Tensor:
        """Sums gathered rows ``[k, N·T, d]`` over positions where asked to."""
        return self._per_sample(rows).sum(2) if self.reduce else rows

    def _per_sample(self, rows: Tensor) -> Tensor:
        return rows.reshape(rows.shape[0], self.samples, self.positions, -1)

    def take(self, table: Tensor) -> Tensor:
        """Copies the rows of ``[N, ..., d]``: ``[r, d]``."""
        if self.index is None:
            # The caller may change its tensor before the backward.
            return table.clone(memory_format=torch.contiguous_format).view(-1, table.shape[-1])
        flat = table.reshape(-1, table.shape[-1])
        return flat.index_select(0, self.index.to(flat.device, non_blocking=True))


@lru_cache(maxsize=64)
def plan_rows(
    samples: int, positions: int, budget: int | None, *, reduce: bool, seed: int
) -> RowPlan:
    """Chooses rows under a budget: as many samples as it allows, then positions.

    Rows of different samples are the more independent ones. The choice depends on
    the arguments alone, so a resumed run and a recomputed forward choose alike.
    ``None`` and ``reduce`` take all rows.
    """
    if reduce or budget is None or samples * positions <= budget:
        return RowPlan(samples, positions, None, reduce)
    # On the CPU, whatever the default device is, so that every device chooses alike.
    how: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(seed), "device": "cpu"}
    if budget < samples:
        chosen = torch.randperm(samples, **how)[:budget]
        position = torch.randint(positions, (budget,), **how)
        return RowPlan(samples, positions, chosen * positions + position)
    each = budget // samples
    # A random offset and an even stride: distinct positions that cover every sample's map.
    offset = torch.randint(positions, (samples, 1), **how)
    steps = (torch.arange(each, device="cpu") * positions) // each
    position = (offset + steps) % positions
    flat = torch.arange(samples, device="cpu").unsqueeze(1) * positions + position
    return RowPlan(samples, positions, flat.flatten())
