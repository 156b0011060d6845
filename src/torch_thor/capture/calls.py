"""Calls of a layer whose gradients have arrived, and how many rows and losses they count for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.layers import Geometry
    from torch_thor.layers.rows import RowPlan


_ROUNDING = 1e-3  # of the summands of a gradient


@dataclass(eq=False)
class Call:
    """One forward call of a layer whose output gradient has arrived.

    Args:
        inputs: ``[k, r, columns]``, or ``[k, r]`` where the geometry is one-hot.
        gradients: ``[k, r, out]``.
        plan: Rows that were taken.
        group: Calls of one forward pass share a number, micro-batches differ.
        covers: Matrices that took part, where not all did; the others' rows are zeros.
        counted: Which of its rows are no padding; ``None`` where none is, or where ``share`` says.
        share: Share of the rows that are no padding.
    """

    inputs: Tensor
    gradients: Tensor
    plan: RowPlan
    group: int
    covers: range | None = None
    counted: Tensor | None = None
    share: float = 1.0

    @property
    def rows(self) -> float:
        """Rows that the taken ones stand for, without padding."""
        return self.plan.rows * self.share

    @property
    def terms(self) -> float:
        """Samples × positions, without padding."""
        return self.plan.samples * self.plan.positions * self.share

    def moves(self, geometry: Geometry) -> bool:
        """Whether its gradient of the weight is anything but zero; waits for the device.

        What is small against its summands may be rounding.
        """
        if geometry.one_hot:
            return bool((self.gradients * (self.inputs >= 0).unsqueeze(-1)).any())
        wide = torch.promote_types(self.gradients.dtype, torch.float32)
        gradients, inputs = self.gradients.to(wide), self.inputs.to(wide)
        if geometry.unit_wise:
            gradients = gradients[..., :1]  # of the scale, which is the weight
        elif geometry.bias:
            inputs = inputs[..., :-1]
        summed = (gradients.mT @ inputs).abs()
        return bool((summed > _ROUNDING * (gradients.abs().mT @ inputs.abs())).any())


def count_rows(calls: list[Call]) -> None:
    """Asks the devices once which shares of the calls' rows are padding."""
    waiting: dict[torch.device, list[Call]] = defaultdict(list)
    for call in calls:
        if call.counted is not None:
            waiting[call.counted.device].append(call)
    for alike in waiting.values():
        flags = [call.counted for call in alike if call.counted is not None]
        counts = torch.stack([flag.sum() for flag in flags]).tolist()
        for call, count, flag in zip(alike, counts, flags, strict=True):
            call.counted, call.share = None, count / len(flag)


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


def loss_terms(calls: list[Call]) -> float:
    """Samples × positions that a loss averages over: those of one call of each forward pass."""
    passes: dict[int, float] = defaultdict(float)
    for call in calls:
        # An attention's losses stand at the positions of its queries, the first matrix.
        if covers(call, 0):
            passes[call.group] = max(passes[call.group], call.terms)
    return sum(passes.values())


def covers(call: Call, matrix: int) -> bool:
    """Whether a matrix took part in a call."""
    return call.covers is None or matrix in call.covers


def rows_of(calls: list[Call]) -> float | tuple[float, ...]:
    """R, rows that the taken ones stand for; one a matrix where calls cover different ones."""
    if all(call.covers is None for call in calls):
        return sum(call.rows for call in calls)
    return tuple(
        sum(call.rows for call in calls if covers(call, matrix))
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
