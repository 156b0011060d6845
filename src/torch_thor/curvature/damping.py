"""How damping λ becomes a shift of each factor's diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_thor.options.curvature import DampingMode


def diagonal_shifts(
    mode: DampingMode, damping: Tensor, trace_a: Tensor, trace_g: Tensor, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Returns what is added to the diagonals of A and G.

    A factor without any trace takes the mean eigenvalue 1, so that a layer that saw only
    zeros steps along its gradient.

    Args:
        mode: See ``Damping``.
        damping: λ, ``[..., 1]`` against the traces' shape.
        trace_a: tr A, ``[..., k]``.
        trace_g: tr G, ``[..., k]``.
        sizes: (d_A, d_G).

    Returns:
        Two tensors of the traces' shape.
    """
    mean_a, mean_g = _mean(trace_a, sizes[0]), _mean(trace_g, sizes[1])
    if mode == "relative":
        return damping * mean_a, damping * mean_g
    if mode == "both":
        return damping.expand_as(mean_a), damping.expand_as(mean_g)
    root = damping.sqrt()
    if mode == "sqrt":
        return root.expand_as(mean_a), root.expand_as(mean_g)
    balance = (mean_a / mean_g).sqrt()
    return root * balance, root / balance


def unit_shifts(
    mode: DampingMode, damping: Tensor, trace_g: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """The same where A is 1 and G the whole Fisher block: λ is added to it once."""
    shift = damping * _mean(trace_g, size) if mode == "relative" else damping.expand_as(trace_g)
    return torch.zeros_like(trace_g), shift


def _mean(trace: Tensor, size: int) -> Tensor:
    return torch.where(trace > 0, trace / size, 1.0)
