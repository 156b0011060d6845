"""Rows of token layers that are padding: no loss depends on them, or the user says so.

A position whose output gradient is exactly zero adds nothing to the Fisher; where it is padding,
its activation is nobody's and would only dilute A. A position of a convolution may have a zero
gradient for other reasons (pooling, dead units), so those count as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan


def kept_rows(mask: Tensor | None, plan: RowPlan) -> Tensor | None:
    """Which of the rows of a call a mask leaves in; ``None`` where it is not about this call.

    Args:
        mask: True where a position counts, ``[N, T]``.
        plan: The rows that were taken.
    """
    if mask is None or tuple(mask.shape) != (plan.samples, plan.positions):
        return None
    flat = mask.flatten()
    return flat if plan.index is None else flat[plan.index.to(flat.device)]


def counting_rows(gradients: Tensor, kept: Tensor | None) -> Tensor:
    """Which rows count, ``[r]``: those with a gradient, unless none has one, and a mask allows.

    Args:
        gradients: ``[k, r, out]``.
        kept: What a mask leaves in.
    """
    alive = (gradients != 0).any(2).any(0)
    alive = alive | ~alive.any()
    return alive if kept is None else alive & kept.to(alive.device)


def without(rows: Tensor, counting: Tensor) -> Tensor:
    """Rows ``[k, r, d]``, or numbers of columns ``[k, r]``, with padding as rows of zeros."""
    if rows.dim() == 2:
        return torch.where(counting, rows, -1)
    return torch.where(counting.unsqueeze(-1), rows, 0.0)


def weighed(inputs: Tensor, mask: Tensor) -> Tensor:
    """Inputs ``[N, T, d]`` whose mean over positions is the mean over those that count."""
    weights = mask.to(inputs.device, inputs.dtype)
    shares = weights.sum(1, keepdim=True).clamp_min(1.0) / mask.shape[1]
    return inputs * (weights / shares).unsqueeze(-1)
