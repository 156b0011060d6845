"""How factors are applied to a gradient: inverse roots, or an eigenvalue-corrected basis.

Both act on gradients stacked as ``[L, k, out, columns]``, block by block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor import linalg
from torch_thor.linalg.factorize import (
    Solution,
    Solver,
    multiply_left,
    multiply_right,
)
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from torch_thor.curvature.factors import FactorStack


class Inverses(ABC):
    """What the factors (A, G) of a stack become, in the type of the products."""

    def __init__(self, a: FactorStack, g: FactorStack, power: float, dtype: torch.dtype) -> None:
        self.power = power
        self.a = torch.zeros_like(a.blocks, dtype=dtype)
        self.g = torch.zeros_like(g.blocks, dtype=dtype)

    def targets(self, side: int, slot: int) -> list[Tensor]:
        """What the blocks of a layer's A (0) or G (1) are factorized into: ``[k, n, s, ...]``."""
        return [(self.a, self.g)[side][slot]]

    @abstractmethod
    def solver(self, condition: float) -> Solver:
        """Returns what factorizes blocks, given a bound on their condition numbers."""

    @abstractmethod
    def direction(self, matrices: Tensor, slots: list[int] | None) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; ``slots`` names the layers, None all."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold."""


class InverseRoots(Inverses):
    """(A + ..)^-p and (G + ..)^-p of every block (paper, eq. 6 at p = 1)."""

    def __init__(self, a: FactorStack, g: FactorStack, power: float, dtype: torch.dtype) -> None:
        super().__init__(a, g, power, dtype)
        self._partitions = (a.partition, g.partition)
        self._flat = (self.a.flatten(0, 1), self.g.flatten(0, 1))

    def solver(self, condition: float) -> Solver:
        """Returns what factorizes damped blocks, given a bound on their condition numbers."""

        def kernel(matrices: Tensor) -> Solution:
            roots, good = linalg.inverse_root(matrices, self.power, condition)
            return (roots,), good

        return Solver(kernel, symmetric=True, power=self.power)

    def direction(self, matrices: Tensor, slots: list[int] | None) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; ``slots`` names the layers, None all."""
        a, g = self._flat
        if slots is not None:
            a, g = (linalg.take(roots, slots).flatten(0, 1) for roots in (self.a, self.g))
        left = multiply_left(g, self._partitions[1], matrices.flatten(0, 1))
        return multiply_right(left, self._partitions[0], a).view(matrices.shape)

    def band(self, matrices: Tensor, slot: int, blocks: slice) -> Tensor:
        """Preconditions the rows of some blocks of G of one layer that is one matrix.

        ``matrices`` is ``[1, rows, columns]``, padded to whole blocks both ways.
        """
        a, g = self.a[slot], self.g[slot, :, blocks]
        rows = Partition(matrices.shape[1], g.shape[-1])
        columns = Partition(matrices.shape[2], a.shape[-1])
        return multiply_right(multiply_left(g, rows, matrices), columns, a)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold."""
        return self.a, self.g
