"""EKFAC: gradients are scaled in the eigenbasis of the factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg
from torch_thor.curvature.inverses import Inverses
from torch_thor.linalg.factorize import (
    Solution,
    Solver,
    multiply_left,
    multiply_right,
)
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from torch_thor.capture.statistics import FactorBatch
    from torch_thor.curvature.factors import FactorStack


class EigenBasis(Inverses):
    """EKFAC: eigenbases of A and G with second moments of the gradient in that basis.

    Scalings S = E[(Q_Gᵀ ∇W Q_A)²] take the place of the products of eigenvalues
    (George et al. 2018). Rows count as samples, as the factors' "expand" does.
    """

    def __init__(self, a: FactorStack, g: FactorStack, power: float, dtype: torch.dtype) -> None:
        super().__init__(a, g, power, dtype)
        self._padding = (a.partition.padding, g.partition.padding)
        # In the basis, padded rows are ordinary rows.
        self._partitions = tuple(Partition(p.padded, p.block) for p in (a.partition, g.partition))
        self.values_a = torch.zeros_like(a.blocks[..., 0])
        self.values_g = torch.zeros_like(g.blocks[..., 0])
        shape = (*a.blocks.shape[:2], g.partition.padded, a.partition.padded)
        self.scalings = a.blocks.new_ones(shape)
        self.inverse = a.blocks.new_ones(shape)

    def targets(self, side: int, slot: int) -> list[Tensor]:
        """Eigenvectors ``[k, n, s, s]`` and eigenvalues ``[k, n, s]``."""
        return [*super().targets(side, slot), (self.values_a, self.values_g)[side][slot]]

    def solver(self, condition: float) -> Solver:  # noqa: ARG002 (it has no say here)
        """Returns what factorizes blocks."""

        def kernel(matrices: Tensor) -> Solution:
            values, vectors = linalg.eigh(linalg.symmetrize(matrices))
            good = values.isfinite().all(-1) & vectors.isfinite().flatten(-2).all(-1)
            return (vectors, values.clamp_min(0)), good

        return Solver(kernel, symmetric=False, power=self.power)

    def reset_scalings(self, slot: int) -> None:
        """A new basis: start again from K-FAC's estimate, the products of eigenvalues."""
        values_a, values_g = self.values_a[slot].flatten(1), self.values_g[slot].flatten(1)
        self.scalings[slot] = values_g.unsqueeze(-1) * values_a.unsqueeze(-2)

    def moments(self, slot: int, a: FactorBatch, g: FactorBatch) -> Tensor:
        """Second moments of a batch's gradients in the current basis: ``[k, out, columns]``."""
        total = torch.zeros_like(self.scalings[slot])
        dtype = total.dtype
        (cut_a, cut_g), (pad_a, pad_g) = self._partitions, self._padding
        basis_a, basis_g = self.a[slot].to(dtype), self.g[slot].to(dtype)

        def side_a(rows: Tensor) -> Tensor:
            return multiply_right(pad(rows.to(dtype), (0, pad_a)), cut_a, basis_a)

        for rows_a, rows_g, weight in zip(a.rows, g.rows, a.weights, strict=True):
            side_g = multiply_right(pad(rows_g.to(dtype), (0, pad_g)), cut_g, basis_g)
            a.structure.add_moments(total, rows_a, side_g, weight, side_a)
        return total * g.scale

    def fold_scalings(self, slot: int, moments: Tensor, keep: float) -> None:
        """Folds second moments in the current basis into the average."""
        self.scalings[slot].lerp_(moments, 1.0 - keep)

    def damp(self, slot: int, shift: Tensor) -> None:
        """Recomputes (S + shift)^-p of a layer; ``shift`` is ``[k]``.

        Where a shift leaves less than rounding does (of a square: ε² of the largest), that is
        what is inverted: a direction that no gradient had must not become infinite.
        """
        damped = self.scalings[slot] + shift[:, None, None]
        numbers = torch.finfo(damped.dtype)
        least = (damped.amax((-2, -1), keepdim=True) * numbers.eps**2).clamp_min(numbers.tiny)
        self.inverse[slot] = torch.maximum(damped, least).pow(-self.power)

    def direction(self, matrices: Tensor, slots: list[int] | None) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; ``slots`` names the layers, None all."""
        a, g, inverse = self.a, self.g, self.inverse
        if slots is not None:
            a, g, inverse = (linalg.take(one, slots) for one in (a, g, inverse))
        shape = matrices.shape
        (cut_a, cut_g), (pad_a, pad_g) = self._partitions, self._padding
        flat = pad(matrices.flatten(0, 1), (0, pad_a, 0, pad_g))
        flat_a, flat_g = a.flatten(0, 1), g.flatten(0, 1)
        flat = multiply_right(multiply_left(flat_g.mT, cut_g, flat), cut_a, flat_a)
        flat = flat * inverse.flatten(0, 1)
        flat = multiply_right(multiply_left(flat_g, cut_g, flat), cut_a, flat_a.mT)
        return flat[:, : shape[-2], : shape[-1]].reshape(shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold."""
        return self.a, self.g, self.values_a, self.values_g, self.scalings, self.inverse
