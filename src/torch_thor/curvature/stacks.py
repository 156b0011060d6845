"""Layers of equal shape, stacked: their factors, inverses and directions in one batch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.capture.statistics import empty_batch
from torch_thor.curvature.damping import RULES, mean_eigenvalue
from torch_thor.curvature.eigenbasis import EigenBasis
from torch_thor.curvature.factors import FactorStack, kept_share
from torch_thor.curvature.inverses import InverseRoots
from torch_thor.curvature.row_averages import StackRows, room_for_rows
from torch_thor.curvature.tiling import Candidate, StackTiles, share_tiles
from torch_thor.layers.layout import SMALL_LAYER, Matrices
from torch_thor.layers.shards import local
from torch_thor.linalg.partition import Partition
from torch_thor.linalg.tiles import Cut
from torch_thor.linalg.timing import multiplies_bfloat16
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch_thor.capture.statistics import Batch, FactorBatch
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.inverses import Inverses
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.curvature.row_averages import KindOfRows
    from torch_thor.layers import Geometry


@dataclass(frozen=True)
class SplitRule:
    """Block sizes of (A, G) for every geometry; ``None`` leaves a factor whole."""

    usual: int | None  # of both factors, where ``chosen`` has none
    chosen: Mapping[Geometry, tuple[int | None, int | None]] = field(default_factory=dict)

    def __call__(self, geometry: Geometry) -> tuple[int | None, int | None]:
        """The sizes of a geometry."""
        return self.chosen.get(geometry, (self.usual, self.usual))


@dataclass
class LayerRecord:
    """What is remembered of one layer between refreshes, beside its tensors."""

    weight: float = 0.0  # of its running averages, see ``kept_share``
    ready: bool = False  # whether it has an inverse
    trace: float | None = None  # damped, of the curvature in use: eq. 8's reference
    frozen: bool = False  # by the trace rule
    failures: int = 0  # failed inversions in a row
    change: float | None = None  # Δ of eq. 8 when it was last due; infinite at first
    renewed: int | None = None  # the step of its last refresh
    positions: int | None = None  # rows of A in the first batch, of the rank that saw it first


class LayerStack:
    """State of L layers that share one shape, type and device.

    Args:
        layers: The layers.
        split: Block sizes of (A, G); ``None`` leaves a factor whole.
        options: Of the engine.
        rows: Averages of the directions' rows; all stacks share memory.
        device: Where to allocate; ``None``: beside the layers. "meta" has shapes alone.

    Attributes:
        records: What is remembered of each layer.
        damping_rule: How λ becomes shifts of the factors' diagonals.
        held: Rows of a matrix that this rank holds; a shard's matrices are padded with others.
        tiles: Shared with other stacks; ``None`` where it goes alone.
    """

    def __init__(
        self,
        layers: list[TrackedLayer],
        split: tuple[int | None, int | None],
        options: CurvatureOptions,
        rows: StackRows,
        device: torch.device | None = None,
    ) -> None:
        self.layers, self.rows = layers, rows
        self.records = [LayerRecord() for _ in layers]
        geometry, weight = layers[0].kept, local(layers[0].weight)
        self.geometry = geometry
        self.shard = layers[0].shard
        self.outputs = layers[0].geometry.outputs
        self.dtype = _curvature_dtype(layers[0])
        self.is_corrected = options.eigenvalue_correction
        self.damping_rule = RULES[options.damping.mode]
        self._decay = options.statistics.decay
        structure = geometry.structure
        cut_a = Partition.of(geometry.columns, structure.input_block or split[0])
        diagonal_norms = options.statistics.norm_fisher == "diagonal"
        split_g = structure.output_block(split[1], diagonal=diagonal_norms)
        cut_g = Partition.of(geometry.outputs, split_g)
        count, matrices = len(layers), geometry.matrices
        place = device or weight.device
        self.a = FactorStack(count, matrices, cut_a, dtype=self.dtype, device=place)
        self.g = FactorStack(count, matrices, cut_g, dtype=self.dtype, device=place)
        kind = EigenBasis if self.is_corrected else InverseRoots
        stored = self._inverse_dtype(options.refresh.inverse_dtype)
        self.inverses: Inverses = kind(self.a, self.g, options.power, stored)
        missing = 0 if self.shard is None else self.shard.chunk - self.shard.own
        self.held = geometry.outputs - missing
        weights = [local(layer.weight) for layer in layers]
        self.matrices = Matrices(geometry, weights, stored, missing, place)
        self.tiles: StackTiles | None = None

    def _inverse_dtype(self, chosen: torch.dtype | str | None) -> torch.dtype:
        if isinstance(chosen, torch.dtype) or chosen is None:
            return chosen or self.dtype
        entries = self.geometry.matrices * self.geometry.outputs * self.geometry.columns
        large = self.dtype == torch.float32 and entries >= SMALL_LAYER
        native = large and multiplies_bfloat16(self.layers[0].weight.device)
        return torch.bfloat16 if native else self.dtype

    def __iter__(self) -> Iterator[Place]:
        return (Place(self, slot) for slot in range(len(self.layers)))

    @property
    def factors(self) -> tuple[FactorStack, FactorStack]:
        """A and G."""
        return self.a, self.g

    @property
    def ready(self) -> list[bool]:
        """Whether each layer has an inverse."""
        return [record.ready for record in self.records]

    @property
    def positions(self) -> int | None:
        """Rows of A in a batch, the most of any layer; ``None`` where one's are not known."""
        known = [record.positions for record in self.records if record.positions is not None]
        return max(known) if len(known) == len(self.records) else None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold, layers first: factors, traces, inverses."""
        factors = (self.a.blocks, self.g.blocks, self.a.traces, self.g.traces)
        return (*factors, *self.inverses.tensors)

    def keep(self, slot: int) -> float:
        """Share that the old average keeps when a batch is folded in now."""
        return kept_share(self._decay, self.records[slot].weight)[0]

    def blocks_g(self, batch: FactorBatch) -> Tensor:
        """Blocks of G of a batch: ``[k, n, s, s]``, or ``[W, n, s, s]``, those of every owner."""
        if self.shard is not None:
            batch = replace(batch, rows=tuple(self.shard.deal(rows) for rows in batch.rows))
        return batch.blocks(self.g.partition, self.dtype)

    def note_folded(self, slot: int) -> None:
        """Notes that a batch has entered the running averages of a layer."""
        record = self.records[slot]
        record.weight = kept_share(self._decay, record.weight)[1]

    def own(self, blocks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the blocks (A, G) of a whole layer, those that this rank holds."""
        return blocks if self.shard is None else (blocks[0], self.shard.take(blocks[1]))

    def empty_batch(self) -> Batch:
        """Statistics (A, G) of a layer without any rows."""
        return empty_batch(self.geometry, self.outputs, like=self.a.traces)

    def condition(self, damping: float) -> float:
        """Bound on the condition numbers of blocks damped by λ; infinite where unknown."""
        return self.damping_rule.condition(damping, max(self.geometry.columns, self.outputs))

    @property
    def _basis(self) -> EigenBasis:
        if not isinstance(self.inverses, EigenBasis):
            raise InvalidOptionError("eigenvalue_correction", self.is_corrected, "True")
        return self.inverses

    def moments(self, slot: int, batch: Batch) -> Tensor:
        """EKFAC: second moments of a batch's gradients, in the basis of a layer."""
        return self._basis.moments(slot, *batch)

    def correct(self, slot: int, damping: float, moments: Tensor, *, new: bool) -> None:
        """EKFAC: renews the scalings of a layer after its statistics or its basis changed."""
        basis = self._basis
        if new:
            basis.reset_scalings(slot)
        basis.fold_scalings(slot, moments, self.keep(slot))
        # What λ adds to the diagonal of A ⊗ G itself.
        traces = self.a.traces[slot] * self.g.traces[slot]
        mean = mean_eigenvalue(traces, self.geometry.columns * self.outputs)
        basis.damp(slot, self.damping_rule.whole_shift(torch.full_like(mean, damping), mean))

    def direction(self, slots: list[int], matrices: Tensor) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; layers without an inverse pass through."""
        ready = [place for place, slot in enumerate(slots) if self.records[slot].ready]
        if len(ready) == len(slots):
            whole = len(slots) == len(self.layers)
            return self.inverses.direction(matrices, None if whole else slots)
        result = matrices.clone()
        if ready:
            chosen = [slots[place] for place in ready]
            result[ready] = self.inverses.direction(matrices[ready], chosen)
        return result


@dataclass(eq=False)
class Place:
    """Where the curvature of a layer is."""

    stack: LayerStack
    slot: int  # its number there

    @property
    def layer(self) -> TrackedLayer:
        """The layer."""
        return self.stack.layers[self.slot]

    @property
    def record(self) -> LayerRecord:
        """What is remembered of it."""
        return self.stack.records[self.slot]


def build_stacks(
    layers: Iterable[TrackedLayer],
    split: SplitRule,
    options: CurvatureOptions,
    device: torch.device | None = None,
) -> list[LayerStack]:
    """Groups layers by shape, type and device, in the order of first appearance."""
    groups: dict[tuple[object, ...], list[TrackedLayer]] = defaultdict(list)
    for layer in layers:
        weight = layer.weight
        groups[layer.geometry, layer.shard, weight.dtype, weight.device].append(layer)
    found = list(groups.values())
    rows = room_for_rows(_kind_of_rows(group, device) for group in found)
    stacks = [
        LayerStack(group, split(group[0].geometry), options, own, device)
        for group, own in zip(found, rows, strict=True)
    ]
    for stack, tiles in zip(stacks, share_tiles(list(map(_candidate, stacks))), strict=True):
        stack.tiles = tiles
    return stacks


def _candidate(stack: LayerStack) -> Candidate:
    count = len(stack.layers) * stack.geometry.matrices
    cut = Cut(count, stack.g.partition, stack.a.partition)
    weight = local(stack.layers[0].weight)
    return Candidate(stack.inverses, stack.matrices, cut, weight.numel(), weight.device)


def _kind_of_rows(group: list[TrackedLayer], device: torch.device | None) -> KindOfRows:
    layer, geometry = group[0], group[0].kept
    # No rank sees the length of a sharded layer, against which its rows would be weighed.
    rows = geometry.outputs if layer.shard is None else 0
    shape = (len(group), geometry.matrices, rows)
    return _curvature_dtype(layer), device or local(layer.weight).device, shape


def _curvature_dtype(layer: TrackedLayer) -> torch.dtype:
    return torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
