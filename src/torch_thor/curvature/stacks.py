"""Layers of equal shape, stacked: their factors, inverses and directions in one batch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from torch_thor import linalg
from torch_thor.capture.statistics import empty_batch
from torch_thor.curvature.damping import RULES, DampingRule, mean_eigenvalue
from torch_thor.curvature.eigenbasis import EigenBasis, Inverses
from torch_thor.curvature.factors import FactorStack, kept_share
from torch_thor.curvature.inverses import InverseRoots
from torch_thor.curvature.row_averages import RowAverages, StackRows
from torch_thor.layers.layout import SMALL_LAYER, Matrices
from torch_thor.layers.shards import local
from torch_thor.linalg.partition import Partition
from torch_thor.linalg.timing import multiplies_bfloat16
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch_thor.capture.statistics import FactorBatch
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.layers import Geometry
    from torch_thor.linalg.factorize import Factorization


@dataclass(frozen=True)
class SplitRule:
    """Block sizes of (A, G) for every geometry; ``None`` leaves a factor whole.

    Args:
        usual: Size of both factors where ``chosen`` has none.
        chosen: Sizes of the geometries that have their own.
    """

    usual: int | None
    chosen: Mapping[Geometry, tuple[int | None, int | None]] = field(default_factory=dict)

    def __call__(self, geometry: Geometry) -> tuple[int | None, int | None]:
        """Returns the sizes of a geometry."""
        return self.chosen.get(geometry, (self.usual, self.usual))


@dataclass(frozen=True)
class StackOptions:
    """What all stacks of one engine share.

    Args:
        power: p of the inverse root.
        damping: How damping enters.
        decay: ρ of the running average.
        eigen: EKFAC's eigenvalue-corrected basis in place of inverse roots.
        inverse_dtype: Type of inverses and products, see ``Refresh``.
        diagonal_norms: Whether norms have a diagonal Fisher in place of the unit-wise one.
    """

    power: float
    damping: DampingRule
    decay: float
    eigen: bool
    inverse_dtype: torch.dtype | Literal["auto"] | None
    diagonal_norms: bool = False

    @classmethod
    def of(cls, options: CurvatureOptions) -> StackOptions:
        """What stacks are told of an engine's options."""
        return cls(
            options.power,
            RULES[options.damping.mode],
            options.statistics.decay,
            options.eigenvalue_correction,
            options.refresh.inverse_dtype,
            options.statistics.norm_fisher == "diagonal",
        )


class LayerStack:
    """State of L layers that share one shape, type and device.

    Args:
        layers: The layers.
        split: Block sizes of (A, G); ``None`` leaves a factor whole.
        options: See ``StackOptions``.
        rows: Averages of the directions' rows; all stacks share memory.
        device: Where to allocate; ``None``: beside the layers. "meta" has shapes alone.

    Attributes:
        held: Rows of a matrix that this rank holds; a shard's matrices are padded with others.
    """

    def __init__(
        self,
        layers: list[TrackedLayer],
        split: tuple[int | None, int | None],
        options: StackOptions,
        rows: StackRows,
        device: torch.device | None = None,
    ) -> None:
        """Allocates factors and inverses."""
        self.layers = layers
        self.options = options
        self.rows = rows
        geometry, weight = layers[0].kept, local(layers[0].weight)
        self.geometry = geometry
        self.shard = layers[0].shard
        self.outputs = layers[0].geometry.outputs
        self.dtype = _curvature_dtype(layers[0])
        structure = geometry.structure
        cut_a = Partition.of(geometry.columns, structure.input_block or split[0])
        split_g = structure.output_block(split[1], diagonal=options.diagonal_norms)
        cut_g = Partition.of(geometry.outputs, split_g)
        count, matrices = len(layers), geometry.matrices
        place = device or weight.device
        self.a = FactorStack(count, matrices, cut_a, dtype=self.dtype, device=place)
        self.g = FactorStack(count, matrices, cut_g, dtype=self.dtype, device=place)
        kind = EigenBasis if options.eigen else InverseRoots
        stored = self._inverse_dtype()
        self.inverses: Inverses = kind(self.a, self.g, options.power, stored)
        missing = 0 if self.shard is None else self.shard.chunk - self.shard.own
        self.held = geometry.outputs - missing
        weights = [local(layer.weight) for layer in layers]
        self.matrices = Matrices(geometry, weights, stored, missing, place)
        self.weights = [0.0] * count
        self.ready = [False] * count

    def _inverse_dtype(self) -> torch.dtype:
        chosen = self.options.inverse_dtype
        if chosen != "auto":
            return chosen or self.dtype
        entries = self.geometry.matrices * self.geometry.outputs * self.geometry.columns
        large = self.dtype == torch.float32 and entries >= SMALL_LAYER
        native = large and multiplies_bfloat16(self.layers[0].weight.device)
        return torch.bfloat16 if native else self.dtype

    def keep(self, slot: int) -> float:
        """Share that the old average keeps when a batch is folded in now."""
        return kept_share(self.options.decay, self.weights[slot])[0]

    def blocks_g(self, batch: FactorBatch) -> Tensor:
        """Blocks of G of a batch: ``[k, n, s, s]``, or ``[W, n, s, s]``, those of every owner."""
        if self.shard is not None:
            batch = replace(batch, rows=tuple(self.shard.deal(rows) for rows in batch.rows))
        return batch.blocks(self.g.partition, self.dtype)

    def fold(self, slot: int, blocks: tuple[Tensor, Tensor], traces: tuple[Tensor, Tensor]) -> None:
        """Folds (A, G) of a batch, and their traces, into the running averages of a layer."""
        keep, following = kept_share(self.options.decay, self.weights[slot])
        for factor, new, trace in zip((self.a, self.g), self.own(blocks), traces, strict=True):
            factor.fold(slot, new, trace, keep)
        self.weights[slot] = following

    def own(self, blocks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the blocks (A, G) of a whole layer, those that this rank holds."""
        return blocks if self.shard is None else (blocks[0], self.shard.take(blocks[1]))

    def empty_batch(self) -> tuple[FactorBatch, FactorBatch]:
        """Statistics (A, G) of a layer without any rows."""
        return empty_batch(self.geometry, self.outputs, like=self.a.traces)

    def damping(self, slots: list[int]) -> Tensor:
        """λ of some layers as ``[l, 1]``."""
        values = [self.layers[slot].damping for slot in slots]
        return linalg.vector(values, self.dtype, self.a.blocks.device).unsqueeze(-1)

    def shifts(self, slots: list[int], trace_a: Tensor, trace_g: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonal shifts of A and G of some layers, given their traces ``[l, k]``."""
        rule, damping = self.options.damping, self.damping(slots)
        mean_g = mean_eigenvalue(trace_g, self.outputs)
        if not self.geometry.structure.is_factored:  # A is 1
            return torch.zeros_like(trace_a), rule.whole_shift(damping, mean_g)
        return rule.shifts(damping, mean_eigenvalue(trace_a, self.geometry.columns), mean_g)

    def condition(self, slots: list[int]) -> float:
        """Bound on the condition numbers of some layers' damped blocks; infinite where unknown."""
        least = min(self.layers[slot].damping for slot in slots)
        return self.options.damping.condition(least, max(self.geometry.columns, self.outputs))

    def jobs(self, slots: list[int]) -> list[Factorization]:
        """Returns the factorizations that refresh some layers."""
        traces = [linalg.take(factor.traces, slots) for factor in (self.a, self.g)]
        shifts = self.shifts(slots, traces[0], traces[1])
        a, g = self.inverses.jobs(self.a, self.g, slots, shifts)
        return [a, g if self.shard is None else replace(g, owned=True)]

    @property
    def is_corrected(self) -> bool:
        """Whether the layers have EKFAC's scalings."""
        return self.options.eigen

    @property
    def _basis(self) -> EigenBasis:
        if not isinstance(self.inverses, EigenBasis):
            raise InvalidOptionError("eigenvalue_correction", self.options.eigen, "True")
        return self.inverses

    def moments(self, slot: int, batch: tuple[FactorBatch, FactorBatch]) -> Tensor:
        """EKFAC: second moments of a batch's gradients, in the basis of a layer."""
        return self._basis.moments(slot, *batch)

    def correct(self, slot: int, moments: Tensor, *, new: bool) -> None:
        """EKFAC: renews the scalings of a layer after its statistics or its basis changed."""
        basis = self._basis
        if new:
            basis.reset_scalings(slot)
        basis.fold_scalings(slot, moments, self.keep(slot))
        shift = self.product_shift(slot, self.a.traces[slot], self.g.traces[slot])
        basis.damp(slot, shift)

    def product_shift(self, slot: int, trace_a: Tensor, trace_g: Tensor) -> Tensor:
        """What λ adds to the diagonal of A ⊗ G itself, for traces ``[k]`` of one layer."""
        mean = mean_eigenvalue(trace_a * trace_g, self.geometry.columns * self.outputs)
        return self.options.damping.whole_shift(self.damping([slot]).squeeze(0), mean)

    def product_trace(self, slot: int, trace_a: Tensor, trace_g: Tensor) -> Tensor:
        """tr(A ⊗ G + λI) of a layer, summed over its matrices."""
        entries = self.geometry.columns * self.outputs
        shift = self.product_shift(slot, trace_a, trace_g)
        return (trace_a * trace_g + shift * entries).sum()

    def direction(self, slots: list[int], matrices: Tensor) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; layers without an inverse pass through."""
        ready = [self.ready[slot] for slot in slots]
        if all(ready):
            whole = len(slots) == len(self.layers)
            return self.inverses.direction(matrices, None if whole else slots)
        result = matrices.clone()
        chosen = [place for place, fine in enumerate(ready) if fine]
        if chosen:
            result[chosen] = self.inverses.direction(
                matrices[chosen], [slots[place] for place in chosen]
            )
        return result


def build_stacks(
    layers: Iterable[TrackedLayer],
    split: SplitRule,
    options: StackOptions,
    device: torch.device | None = None,
) -> list[LayerStack]:
    """Groups layers by shape, type and device, in the order of first appearance.

    Args:
        layers: The layers.
        split: Their block sizes.
        options: What the stacks share.
        device: Where to allocate; ``None``: beside the layers.
    """
    groups: dict[tuple[object, ...], list[TrackedLayer]] = defaultdict(list)
    for layer in layers:
        weight = layer.weight
        groups[layer.geometry, layer.shard, weight.dtype, weight.device].append(layer)
    found = list(groups.values())
    rows = _room_for_rows(found, device)
    return [
        LayerStack(group, split(group[0].geometry), options, own, device)
        for group, own in zip(found, rows, strict=True)
    ]


def _room_for_rows(
    groups: Sequence[list[TrackedLayer]], device: torch.device | None
) -> list[StackRows]:
    """Makes room for the averages of rows: one vector for all stacks of a type and device."""
    shapes: dict[tuple[torch.dtype, torch.device], list[tuple[int, int, int]]] = defaultdict(list)
    places = []
    for group in groups:
        layer, geometry = group[0], group[0].kept
        kind = (_curvature_dtype(layer), device or local(layer.weight).device)
        places.append((kind, len(shapes[kind])))
        # No rank sees the length of a sharded layer, against which its rows would be weighed.
        rows = geometry.outputs if layer.shard is None else 0
        shapes[kind].append((len(group), geometry.matrices, rows))
    averages = {
        (dtype, device): RowAverages(own, dtype=dtype, device=device)
        for (dtype, device), own in shapes.items()
    }
    return [StackRows(averages[kind], number) for kind, number in places]


def _curvature_dtype(layer: TrackedLayer) -> torch.dtype:
    return torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
