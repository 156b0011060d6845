"""Which rank inverts which block, and whether that pays."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def place(costs: Sequence[float], ranks: int) -> list[int]:
    """Gives every job to a rank: the dearest first, each to the rank with the least to do.

    The longest load is at most 4/3 of the best possible (Graham 1969). The same costs give
    the same owners everywhere.

    Args:
        costs: Cost of each job.
        ranks: W.

    Returns:
        The owner of each job.
    """
    loads = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda j: (-costs[j], j)):
        load, rank = heapq.heappop(loads)
        owners[job] = rank
        heapq.heappush(loads, (load + costs[job], rank))
    return owners


def longest_load(costs: Sequence[float], owners: Sequence[int], ranks: int) -> float:
    """Cost of the rank that has the most to do."""
    loads = [0.0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return max(loads)
