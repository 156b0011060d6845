"""Layers of equal shape, stacked: their factors, inverses and directions in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_thor.capture import TrackedLayer
from torch_thor.damping import diagonal_shifts
from torch_thor.factors import FactorBatch, FactorStack, kept_share
from torch_thor.inverses import EigenBasis, Factorization, InverseRoots
from torch_thor.layers import Geometry, from_matrices, to_matrices
from torch_thor.options import DampingMode
from torch_thor.partition import Partition

SplitRule = Callable[[Geometry], tuple[int | None, int | None]]


@dataclass(frozen=True)
class StackOptions:
    """What all stacks of one engine share.

    Args:
        power: p of the inverse root.
        mode: How damping enters.
        decay: ρ of the running average.
        eigen: EKFAC's eigenvalue-corrected basis in place of inverse roots.
        inverse_dtype: Type of inverses and products; ``None`` follows the factors.
    """

    power: float
    mode: DampingMode
    decay: float
    eigen: bool
    inverse_dtype: torch.dtype | None


class LayerStack:
    """State of L layers that share one shape, type and device.

    Args:
        layers: The layers.
        split: Block sizes of (A, G); ``None`` leaves a factor whole.
        options: See ``StackOptions``.
    """

    def __init__(
        self,
        layers: list[TrackedLayer],
        split: tuple[int | None, int | None],
        options: StackOptions,
    ) -> None:
        """Allocates factors and inverses."""
        self.layers = layers
        self.options = options
        geometry, weight = layers[0].geometry, layers[0].weight
        self.geometry = geometry
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        cut_a = Partition.of(geometry.columns, split[0])
        cut_g = Partition.of(geometry.outputs, split[1])
        count, matrices = len(layers), geometry.matrices
        self.a = FactorStack(count, matrices, cut_a, dtype=self.dtype, device=weight.device)
        self.g = FactorStack(count, matrices, cut_g, dtype=self.dtype, device=weight.device)
        kind = EigenBasis if options.eigen else InverseRoots
        stored = options.inverse_dtype or self.dtype
        self.inverses: EigenBasis | InverseRoots = kind(self.a, self.g, options.power, stored)
        self.weights = [0.0] * count
        self.ready = [False] * count

    def keep(self, slot: int) -> float:
        """Share that the old average keeps when a batch is folded in now."""
        return kept_share(self.options.decay, self.weights[slot])[0]

    def fold(self, slot: int, a: FactorBatch, g: FactorBatch) -> None:
        """Folds a batch into both running averages of a layer."""
        keep, following = kept_share(self.options.decay, self.weights[slot])
        self.a.fold(slot, a, keep)
        self.g.fold(slot, g, keep)
        self.weights[slot] = following

    def shifts(self, trace_a: Tensor, trace_g: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonal shifts of A and G for traces ``[L, k]`` at the layers' own λ."""
        damping = torch.tensor([layer.damping for layer in self.layers], dtype=self.dtype)
        damping = damping.to(trace_a.device).unsqueeze(-1)
        sizes = (self.geometry.columns, self.geometry.outputs)
        return diagonal_shifts(self.options.mode, damping, trace_a, trace_g, sizes)

    def jobs(self, slots: list[int]) -> list[Factorization]:
        """Returns the factorizations that refresh some layers."""
        return self.inverses.jobs(self.a, self.g, slots, self.shifts(self.a.traces, self.g.traces))

    def correct(self, slot: int, batch: tuple[FactorBatch, FactorBatch] | None, *, new: bool) -> None:
        """EKFAC: renews the scalings of a layer after its basis or its statistics changed."""
        if not isinstance(self.inverses, EigenBasis) or not self.ready[slot]:
            return
        if new:
            self.inverses.reset_scalings(slot)
        if batch is not None:
            self.inverses.fold_scalings(slot, *batch, self.keep(slot))
        self.inverses.damp([slot], self._eigen_shift())

    def _eigen_shift(self) -> Tensor:
        if self.options.mode == "relative":
            entries = self.geometry.columns * self.geometry.outputs
            mean = self.a.traces * self.g.traces / entries
        else:
            mean = torch.ones_like(self.a.traces)
        damping = torch.tensor([layer.damping for layer in self.layers], dtype=self.dtype)
        return damping.to(mean.device).unsqueeze(-1) * torch.where(mean > 0, mean, 1.0)

    def pack(self, slots: list[int], sources: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Lays weight- and bias-shaped tensors of some layers out as ``[l, k, out, columns]``."""
        matrices = [to_matrices(self.geometry, weight, bias) for weight, bias in sources]
        return torch.stack(matrices) if len(matrices) > 1 else matrices[0].unsqueeze(0)

    def unpack(self, slots: list[int], matrices: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Inverts ``pack``."""
        return [
            from_matrices(self.geometry, matrix, self.layers[slot].weight.shape)
            for slot, matrix in zip(slots, matrices.unbind(0), strict=True)
        ]

    def direction(self, slots: list[int], matrices: Tensor) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; layers without an inverse pass through."""
        ready = [self.ready[slot] for slot in slots]
        if all(ready):
            whole = len(slots) == len(self.layers)
            return self.inverses.direction(matrices, None if whole else slots)
        result = matrices.to(self.inverses.a.dtype, copy=True)
        chosen = [place for place, fine in enumerate(ready) if fine]
        if chosen:
            result[chosen] = self.inverses.direction(
                matrices[chosen], [slots[place] for place in chosen]
            )
        return result


def build_stacks(
    layers: Iterable[TrackedLayer], split: SplitRule, options: StackOptions
) -> list[LayerStack]:
    """Groups layers by shape, type and device, in the order of first appearance."""
    groups: dict[tuple[Geometry, torch.dtype, torch.device], list[TrackedLayer]] = defaultdict(list)
    for layer in layers:
        groups[layer.geometry, layer.weight.dtype, layer.weight.device].append(layer)
    return [
        LayerStack(group, split(geometry), options) for (geometry, _, _), group in groups.items()
    ]
