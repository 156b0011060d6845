"""The modes of damping, a class each: how λ becomes a shift of each factor's diagonal.

All tensors are of the shape of a layer's traces, ``[..., k]``, λ of one that spreads over it; means
are mean eigenvalues, tr / d. One that is not positive counts as 1, so that a layer that saw only
zeros steps along its gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_thor.options.curvature import DampingMode


class DampingRule(ABC):
    """What λ adds to the diagonals, see ``Damping``."""

    @abstractmethod
    def shifts(self, damping: Tensor, mean_a: Tensor, mean_g: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the diagonals of A and of G."""

    def whole_shift(self, damping: Tensor, mean: Tensor) -> Tensor:
        """What is added to the diagonal of one matrix that is the whole Fisher block, as A ⊗ G."""
        return damping.expand_as(mean)

    def condition(self, damping: float, size: int) -> float:  # noqa: ARG002 (nothing is known)
        """Bound on the condition number of a damped block; no eigenvalue exceeds size · mean."""
        return math.inf


class Both(DampingRule):
    """λ to both factors (paper, eq. 6)."""

    def shifts(self, damping: Tensor, mean_a: Tensor, mean_g: Tensor) -> tuple[Tensor, Tensor]:
        """λ and λ."""
        return damping.expand_as(mean_a), damping.expand_as(mean_g)


class Sqrt(Both):
    """√λ to both factors."""

    def shifts(self, damping: Tensor, mean_a: Tensor, mean_g: Tensor) -> tuple[Tensor, Tensor]:
        """√λ and √λ."""
        return super().shifts(damping.sqrt(), mean_a, mean_g)


class Pi(DampingRule):
    """√λ·π and √λ/π with π² = mean A / mean G (Martens and Grosse 2015)."""

    def shifts(self, damping: Tensor, mean_a: Tensor, mean_g: Tensor) -> tuple[Tensor, Tensor]:
        """√λ·π and √λ/π."""
        root, balance = damping.sqrt(), (mean_a / mean_g).sqrt()
        return root * balance, root / balance


class Relative(DampingRule):
    """λ times each factor's mean eigenvalue."""

    def shifts(self, damping: Tensor, mean_a: Tensor, mean_g: Tensor) -> tuple[Tensor, Tensor]:
        """λ · mean A and λ · mean G."""
        return damping * mean_a, damping * mean_g

    def whole_shift(self, damping: Tensor, mean: Tensor) -> Tensor:
        """λ · mean."""
        return damping * mean

    def condition(self, damping: float, size: int) -> float:
        """1 + size / λ."""
        return 1.0 + size / damping if damping > 0 else math.inf


RULES: dict[DampingMode, DampingRule] = {
    "both": Both(),
    "sqrt": Sqrt(),
    "pi": Pi(),
    "relative": Relative(),
}


def mean_eigenvalue(trace: Tensor, size: int | Tensor) -> Tensor:
    """Tr / d; 1 for a factor without any trace."""
    return torch.where(trace > 0, trace / size, 1.0)
