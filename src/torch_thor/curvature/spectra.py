"""What the blocks of factors tell of their eigenvalues, without finding these.

Effective rank: (Σ μ)² / Σ μ² over the eigenvalues μ of all blocks of a factor, that is
tr² / ‖·‖_F²; from 1, where one direction has everything, to the factor's size, where all have the
same.

Condition: (μ_max + shift) / shift, of what is inverted; shift is what λ adds to the diagonal, and
the smallest eigenvalue counts as zero. The largest one comes from a power iteration, so that it may
be underestimated, by up to a tenth where several are about as large.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from torch_thor import linalg
from torch_thor.curvature.damping import mean_eigenvalue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.curvature.factors import FactorStack
    from torch_thor.curvature.stacks import LayerStack

_ITERATIONS = 8
_SMALL_BLOCK = 256  # rows; copies of larger blocks would cost more than calls


def spectra(stacks: Sequence[LayerStack], dampings: Mapping[nn.Parameter, float]) -> list[Tensor]:
    """Returns effective ranks of A and G and conditions of A and G of each stack: ``[4, L]``.

    A layer of several matrices has the mean of their ranks and the largest of their conditions. One
    without statistics has NaN. Of a sharded layer, G is the rows that this rank owns.

    Args:
        stacks: The layers' curvature.
        dampings: λ of each weight.
    """
    largest = _largest([factor for stack in stacks for factor in stack.factors])
    found = []
    for place, stack in enumerate(stacks):
        ranks = [_effective_rank(factor) for factor in stack.factors]
        tops = largest[2 * place : 2 * place + 2]
        damping = [dampings[layer.weight] for layer in stack.layers]
        conditions = [
            ((top + shift) / shift).amax(1)
            for top, shift in zip(tops, _shifts(stack, damping), strict=True)
        ]
        seen = stack.a.traces.sum(1) > 0
        found.append(torch.stack((*ranks, *conditions)).where(seen, torch.nan))
    return found


def _effective_rank(factor: FactorStack) -> Tensor:
    """Of the blocks together, ``[L]``: the mean over a layer's matrices."""
    blocks = factor.blocks
    traces = blocks.diagonal(dim1=-2, dim2=-1).sum((2, 3))
    lengths: Tensor = torch.linalg.vector_norm(blocks, dim=(2, 3, 4))
    return (traces / lengths).square().mean(1)


def _shifts(stack: LayerStack, damping: Sequence[float]) -> tuple[Tensor, Tensor]:
    """What λ adds to the diagonals of A and G, ``[L, k]`` each."""
    a, g, rule = stack.a.traces, stack.g.traces, stack.damping_rule
    own = linalg.vector(damping, a.dtype, a.device).unsqueeze(1).expand_as(a)
    mean_a = mean_eigenvalue(a, stack.geometry.columns)
    mean_g = mean_eigenvalue(g, stack.outputs)
    if not stack.geometry.structure.is_factored:  # A is 1
        return torch.ones_like(a), rule.whole_shift(own, mean_g)
    return rule.shifts(own, mean_a, mean_g)


def _largest(factors: Sequence[FactorStack]) -> list[Tensor]:
    """The largest eigenvalue of each factor's blocks, ``[L, k]`` each."""
    alike: dict[object, list[int]] = defaultdict(list)
    for place, factor in enumerate(factors):
        blocks = factor.blocks
        size = blocks.shape[-1]
        alone = place if size > _SMALL_BLOCK else None
        alike[size, blocks.dtype, blocks.device, alone].append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        shapes = [factors[place].blocks.shape[:3] for place in places]
        flat = [factors[place].blocks.flatten(0, 2) for place in places]
        # Of XᵀX, whose largest eigenvalue is the square.
        blocks = flat[0] if len(flat) == 1 else torch.cat(flat)
        values = linalg.largest_eigenvalue(blocks, _ITERATIONS).sqrt()
        parts = values.split([shape.numel() for shape in shapes])
        for place, part, shape in zip(places, parts, shapes, strict=True):
            found[place] = part.view(shape).amax(2)
    return [found[place] for place in range(len(factors))]
