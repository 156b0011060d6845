"""Calls of a layer whose gradients have arrived, and how many rows and losses they count for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.layers import Geometry
    from torch_thor.sampling import RowPlan


@dataclass(frozen=True)
class Call:
    """One forward call of a layer whose output gradient has arrived.

    Args:
        inputs: ``[k, r, columns]``, or ``[k, r]`` where the geometry is one-hot.
        gradients: ``[k, r, out]``.
        plan: Rows that were taken.
        group: Calls of one forward pass share a number, micro-batches differ.
        covers: Matrices that took part, where not all did; the others' rows are zeros.
    """

    inputs: Tensor
    gradients: Tensor
    plan: RowPlan
    group: int
    covers: range | None = None


def make_call(
    geometry: Geometry, inputs: Tensor, gradients: Tensor, plan: RowPlan, first: int, group: int
) -> Call:
    """Spreads the rows of the matrices that took part over all matrices of the layer."""
    if geometry.unit_wise:
        gradients = _sample_gradients(geometry, inputs, gradients, plan)
        inputs = gradients.new_ones(1, 1, 1).expand(*gradients.shape[:2], 1)
        return Call(inputs, gradients, plan, group)
    total, present = geometry.matrices, gradients.shape[0]
    inputs = inputs.expand(present, *inputs.shape[1:])
    if present == total:
        return Call(inputs, gradients, plan, group)
    part = range(first, first + present)
    spread = []
    for rows in (inputs, gradients):
        spread.append(rows.new_zeros(total, *rows.shape[1:]))
        spread[-1][part.start : part.stop] = rows
    return Call(spread[0], spread[1], plan, group, part)


def _sample_gradients(
    geometry: Geometry, inputs: Tensor, gradients: Tensor, plan: RowPlan
) -> Tensor:
    """Gradients of scale and shift of each channel and sample: ``[k, N, 1 or 2]``."""
    wide = torch.promote_types(gradients.dtype, torch.float32)
    slopes = gradients.squeeze(-1).to(wide)
    parts = (inputs.squeeze(-1).to(wide) * slopes, slopes)[: geometry.outputs]
    shape = (plan.samples, plan.positions)
    return torch.stack([part.reshape(len(part), *shape).sum(2) for part in parts], dim=-1)


def joined(calls: list[Call]) -> list[Call]:
    """Sums the samples' gradients over the calls of one forward pass."""
    passes: dict[tuple[int, int], list[Call]] = defaultdict(list)
    for call in calls:
        passes[call.group, call.plan.samples].append(call)
    return [
        replace(alike[0], gradients=torch.stack([call.gradients for call in alike]).sum(0))
        for alike in passes.values()
    ]


def loss_terms(calls: list[Call]) -> int:
    """Samples × positions that a loss averages over: those of one call of each forward pass."""
    passes: dict[int, int] = defaultdict(int)
    for call in calls:
        # An attention's losses stand at the positions of its queries, the first matrix.
        if covers(call, 0):
            terms = call.plan.samples * call.plan.positions
            passes[call.group] = max(passes[call.group], terms)
    return sum(passes.values())


def covers(call: Call, matrix: int) -> bool:
    """Whether a matrix took part in a call."""
    return call.covers is None or matrix in call.covers


def rows_of(calls: list[Call]) -> float | tuple[float, ...]:
    """R, rows that the taken ones stand for; one a matrix where calls cover different ones."""
    if all(call.covers is None for call in calls):
        return sum(call.plan.rows for call in calls)
    return tuple(
        sum(call.plan.rows for call in calls if covers(call, matrix))
        for matrix in range(len(calls[0].gradients))
    )


def inverse_rows(calls: list[Call], weight: Tensor) -> float | Tensor:
    """1/R."""
    rows = rows_of(calls)
    if not isinstance(rows, tuple):
        return 1.0 / rows
    dtype = torch.promote_types(weight.dtype, torch.float32)
    shares = [1.0 / max(count, 1) for count in rows]
    return torch.tensor(shares, dtype=dtype, device=weight.device)
