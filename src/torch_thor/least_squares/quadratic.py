"""The quadratic model of a loss around the weights, in the span of a few directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Direction = Sequence[Tensor]  # a tensor for each parameter


@dataclass(frozen=True)
class Proposal:
    """A step, and what the quadratic model says of it.

    Attributes:
        step: A tensor for each parameter.
        slope: gᵀd, the loss's change to first order; a scalar.
        bend: dᵀ G d with the Gauss–Newton matrix G = JᵀJ, undamped; a scalar.
        coefficients: What each direction was multiplied by, ``[k]``.
    """

    step: Direction
    slope: Tensor
    bend: Tensor
    coefficients: Tensor

    def change(self, length: float) -> Tensor:
        """The model's change of the loss along ``length`` times the step, a scalar."""
        return length * self.slope + 0.5 * length * length * self.bend


def best_in_span(
    directions: Sequence[Direction], products: Sequence[Tensor], residuals: Tensor, damping: float
) -> Proposal:
    """Minimizes gᵀd + ½ dᵀ (JᵀJ + λ) d over the span of directions (Martens and Grosse 2015, 7).

    Args:
        directions: k directions.
        products: J times each of them, ``[n]``.
        residuals: r, so that g = Jᵀr: ``[n]``.
        damping: λ.
    """
    moved = torch.stack(list(products)).double()
    lengths = torch.stack(
        [torch.stack([_dot(one, other) for other in directions]) for one in directions]
    )
    slopes, bends = moved @ residuals.double(), moved @ moved.mT
    curved = bends + damping * lengths
    # Directions may be parallel, as a previous step is in a valley: the shortest solution then.
    scale = curved.diagonal().clamp_min(torch.finfo(curved.dtype).tiny).rsqrt()
    inverse = torch.linalg.pinv(scale[:, None] * curved * scale, rtol=1e-12, hermitian=True)
    found = -scale * (inverse @ (scale * slopes))
    step = [
        sum(c * part for c, part in zip(found.to(parts[0].dtype), parts, strict=True))
        for parts in zip(*directions, strict=True)
    ]
    return Proposal(step, found @ slopes, found @ bends @ found, found)


def _dot(one: Direction, other: Direction) -> Tensor:
    parts = zip(one, other, strict=True)
    return torch.stack([(a.double() * b.double()).sum() for a, b in parts]).sum()
