"""Block sizes of A and G for every shape of a layer: information against time, within a budget.

Layers of equal geometry are stacked, so they share a choice. A factor is offered the blocks of
``split=72``, larger candidates, and itself as a whole. The pair (A, G) is taken whose kept
information most exceeds its share of the time, as in ``LayerSplit.choice``, where

- information is the log-det divergence on the rows of the first step with statistics, relative to
  that of a diagonal factor and summed over the layers of the geometry;
- time is that of all inversions and of the products of 20 steps, by measurements of this device;
- factors and inverses together hold at most half as many entries as the weight. No factor is
  cut below the blocks of ``split=72``, whatever these hold: small layers would have nothing else.

Layers without usable statistics in that step take ``split=72``.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from torch_thor.capture.statistics import batch_of
from torch_thor.curvature.split import (
    candidate_sizes,
    held_entries,
    log_det_divergences,
    split_curves,
    trade_gains,
)
from torch_thor.curvature.stacks import SplitRule
from torch_thor.linalg.partition import Partition
from torch_thor.linalg.timing import PRODUCT_ENTRIES, affordable, inversion_times, product_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.layers import Geometry
    from torch_thor.options.curvature import MeasuredSplit, Statistics

SMALLEST_SPLIT = 72
MEMORY_SHARE = 0.5
STEPS_BETWEEN_REFRESHES = 20  # where the default interval begins
DAMPING = 3e-4
_CLOSEST = 1.25  # sizes closer than this are no choice, and no base for a power law

Sizes = tuple[int, int]  # of blocks of A and of G


def split_rule(
    split: int | MeasuredSplit | None,
    layers: Sequence[TrackedLayer],
    statistics: Statistics,
    power: float,
) -> SplitRule:
    """Turns the ``split`` argument of ``THOR`` into block sizes for a model's layers.

    Its words measure the device, and information on the rows of the first statistics.
    """
    if not layers:  # all may be output layers
        return SplitRule(None)
    if split == "per_layer":
        return SplitRule(SMALLEST_SPLIT, chosen_pairs(layers, statistics, power))
    if split == "auto":
        return SplitRule(split_curves(layers, statistics, power=1.0).choice())
    return SplitRule(split)


@dataclass(frozen=True)
class BlockTimes:
    """What blocks of each size cost: measured, and power laws between and beyond."""

    sizes: tuple[int, ...]  # rising, at least two
    inversions: tuple[float, ...]  # seconds to invert one block
    products: tuple[float, ...]  # seconds to multiply ``PRODUCT_ENTRIES`` entries of a weight

    @classmethod
    def measured(cls, sizes: tuple[int, ...], device: torch.device, power: float) -> BlockTimes:
        """Measures a device, or reads what was measured of it before."""
        return cls(sizes, inversion_times(sizes, device, power), product_times(sizes, device))

    def between_refreshes(self, cut: Partition, entries: int) -> float:
        """Seconds that one factor of a weight of so many entries costs in an interval."""
        inversions = cut.count * self._at(cut.block, self.inversions)
        products = self._at(cut.block, self.products) * entries / PRODUCT_ENTRIES
        return inversions + STEPS_BETWEEN_REFRESHES * products

    def _at(self, size: int, seconds: Sequence[float]) -> float:
        high = min(max(bisect(self.sizes, size), 1), len(self.sizes) - 1)
        low = high - 1
        steps = math.log(self.sizes[high] / self.sizes[low])
        exponent = math.log(seconds[high] / seconds[low]) / steps
        return float(seconds[low] * (size / self.sizes[low]) ** exponent)


def chosen_pairs(
    layers: Sequence[TrackedLayer], statistics: Statistics, power: float
) -> dict[Geometry, Sizes]:
    """Chooses the sizes of (A, G) for every geometry that has statistics and a factor to cut."""
    device = layers[0].weight.device
    offered = candidate_sizes([layer.geometry for layer in layers])
    larger = [size for size in offered if size >= _CLOSEST * SMALLEST_SPLIT]
    sizes = affordable((SMALLEST_SPLIT, *(larger or [2 * SMALLEST_SPLIT])), device)
    rows: dict[Geometry, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for layer in layers:
        factored = layer.geometry.structure.is_factored
        batch = batch_of(layer, statistics) if factored else None
        if batch is not None:
            rows[layer.geometry].append((batch[0].rows[0], batch[1].rows[0]))
    pairs = {geometry: affordable_pairs(geometry, sizes) for geometry in rows}
    largest = max((max(pair) for found in pairs.values() for pair in found[1:]), default=0)
    if largest == 0:
        return {geometry: found[0] for geometry, found in pairs.items()}
    # Up to the first size that no choice exceeds; larger factors follow the power law.
    needed = sizes[: max(2, sum(size < largest for size in sizes) + 1)]
    times = BlockTimes.measured(needed, device, power)
    return {
        geometry: _best_pair(geometry, found, rows[geometry], times)
        for geometry, found in pairs.items()
    }


def affordable_pairs(geometry: Geometry, sizes: Sequence[int]) -> list[Sizes]:
    """Returns the pairs of sizes (A, G) within the budget, the smallest always and first."""
    offered_a = _offered(geometry.widest_input_block, sizes)
    first, *others = product(offered_a, _offered(geometry.outputs, sizes))
    allowed = MEMORY_SHARE * geometry.columns * geometry.outputs
    return [first, *(pair for pair in others if held_entries(geometry, pair) <= allowed)]


def _offered(width: int, sizes: Sequence[int]) -> list[int]:
    return sorted({min(size, width) for size in sizes})


def _best_pair(
    geometry: Geometry, pairs: list[Sizes], rows: list[tuple[Tensor, Tensor]], times: BlockTimes
) -> Sizes:
    entries = geometry.columns * geometry.outputs
    gains_a, gains_g = (
        _gains(list(tables), sorted(set(offered)), entries, times)
        for tables, offered in zip(zip(*rows, strict=True), zip(*pairs, strict=True), strict=True)
    )
    # Of equal gains the first counts, the smallest blocks.
    return max(pairs, key=lambda pair: gains_a[pair[0]] + gains_g[pair[1]])


def _gains(
    tables: list[Tensor], offered: list[int], entries: int, times: BlockTimes
) -> dict[int, float]:
    """What each size offered to one factor gains; the whole factor sets the longest time.

    Rows that hold no information, or are not finite, favour no size.
    """
    if len(offered) == 1:
        return {offered[0]: 0.0}
    width = tables[0].shape[-1]
    sizes = sorted({*offered, width})
    losses = [log_det_divergences(table, (1, *sizes), DAMPING) for table in tables]
    diagonal, *lost = (sum(of_size) for of_size in zip(*losses, strict=True))
    if not diagonal > 0.0:
        return dict.fromkeys(offered, 0.0)
    seconds = [times.between_refreshes(Partition.of(width, size), entries) for size in sizes]
    gains = trade_gains(lost, seconds, diagonal)
    return {size: gain for size, gain in zip(sizes, gains, strict=True) if size in offered}
