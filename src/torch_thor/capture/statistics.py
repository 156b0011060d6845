"""The calls behind a step as statistics of A and G, before any matrix is formed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeAlias

import torch
from torch import Tensor

from torch_thor import linalg
from torch_thor.layers.geometry import DENSE, Structure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch_thor.capture.calls import Call
    from torch_thor.capture.fisher import Draw
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.layers import Geometry
    from torch_thor.linalg.partition import Partition
    from torch_thor.options.curvature import LossReduction, Statistics


@dataclass(frozen=True)
class FactorBatch:
    """Statistics of one factor of one layer from the calls since the last step.

    The factor is ``scale · Σ weightᵢ · rowsᵢᵀ rowsᵢ``. Its trace is a sum of squares and
    needs no matrix, so a layer that keeps its curvature pays for nothing else.

    Args:
        rows: One tensor a call, ``[k, r, d]`` where rows are dense, of any floating type.
        weights: Rows stood for ÷ rows taken, of each call.
        scale: Common factor of the sum; a tensor ``[k]`` where the matrices differ in it.
        count: Rows (A) or loss terms (G) that the factor is a mean over: its weight in a mean
            with other ranks' batches. One for each matrix where they differ in it.
        structure: What the rows are like.
    """

    rows: tuple[Tensor, ...]
    weights: tuple[float, ...]
    scale: float | Tensor
    count: float | tuple[float, ...]
    structure: Structure = DENSE

    def scaled(self, share: float | Tensor) -> Self:
        """Returns the batch of ``share`` times the factor; a tensor ``[k]`` has one a matrix."""
        return replace(self, scale=self.scale * share)

    def trace(self, dtype: torch.dtype) -> Tensor:
        """Returns tr of the factor for each of the k matrices: ``[k]``."""
        parts = [
            weight * self.structure.trace(rows, dtype)
            for rows, weight in zip(self.rows, self.weights, strict=True)
        ]
        return torch.stack(parts).sum(0) * self.scale

    def blocks(self, partition: Partition, dtype: torch.dtype) -> Tensor:
        """Returns the diagonal blocks of the factor: ``[k, n, s, s]``."""
        parts = [
            self.structure.blocks(rows, partition, dtype) * weight
            for rows, weight in zip(self.rows, self.weights, strict=True)
        ]
        scale = self.scale
        scale = scale.to(dtype)[:, None, None, None] if isinstance(scale, Tensor) else scale
        return torch.stack(parts).sum(0) * scale if len(parts) > 1 else parts[0] * scale


Batch: TypeAlias = tuple[FactorBatch, FactorBatch]


def traces_of(batches: Sequence[FactorBatch], types: Sequence[torch.dtype]) -> list[Tensor]:
    """Returns tr of each factor in its type, ``[k]`` each; one pass over all dense rows.

    The same as each one's own ``trace``, in a few calls for all of them.
    """
    found: list[Tensor | None] = [None] * len(batches)
    alike: dict[object, list[int]] = defaultdict(list)
    for number, (batch, dtype) in enumerate(zip(batches, types, strict=True)):
        one_call = len(batch.rows) == 1 and not isinstance(batch.scale, Tensor)
        if batch.structure is DENSE and one_call:
            alike[dtype, batch.rows[0].device].append(number)
        else:
            found[number] = batch.trace(dtype)
    for numbers in alike.values():
        own = [batches[number] for number in numbers]
        dtype = types[numbers[0]]
        norms = linalg.norms([m for b in own for m in b.rows[0].unbind(0)], dtype)
        counts = [len(batch.rows[0]) for batch in own]
        scales = [
            float(b.scale) * b.weights[0]
            for b, n in zip(own, counts, strict=True)
            for _ in range(n)
        ]
        squares = norms.square_().to(dtype)
        squares.mul_(linalg.vector(scales, dtype, squares.device))
        for number, trace in zip(numbers, squares.split(counts), strict=True):
            found[number] = trace
    return [trace for trace in found if trace is not None]


def empty_batch(geometry: Geometry, outputs: int, like: Tensor) -> Batch:
    """Returns the statistics (A, G) of a layer without calls.

    Args:
        geometry: Its shape.
        outputs: Rows of a whole matrix, of all ranks that share it.
        like: A tensor of the factors' type and device.
    """
    a, matrices = geometry.structure, geometry.matrices
    rows = a.no_rows(like, matrices, geometry.columns), DENSE.no_rows(like, matrices, outputs)
    return FactorBatch(rows[:1], (1.0,), 1.0, 0.0, a), FactorBatch(rows[1:], (1.0,), 1.0, 0.0)


def batch_of(layer: TrackedLayer, options: Statistics, gradient_scale: float = 1.0) -> Batch | None:
    """Returns the statistics (A, G) of a layer since the last step, if it has any.

    Args:
        layer: The layer.
        options: How losses reduce, and whose gradients count.
        gradient_scale: What the loss was multiplied by (a GradScaler's scale).
    """
    calls, structure = [c for c in layer.ledger.read() if c.share > 0], layer.geometry.structure
    if not calls or layer.obstacle:
        return None
    if not structure.is_factored:
        calls = _summed_over_calls(calls)
    count = _of_each_pass((call.group, call.plan.samples) for call in calls)
    # An attention's losses stand at the positions of its queries, the first matrix.
    terms = _of_each_pass((call.group, call.terms) for call in calls if call.is_of(0))
    scale = {"mean": count, "positions_mean": terms, "sum": 1.0 / count}[options.loss_reduction]
    # A sampled loss is not multiplied by anything.
    scaled_by = 1.0 if options.fisher == "mc" else gradient_scale
    weights = tuple(call.plan.scale for call in calls)
    whole = (1.0,) * len(calls)
    rows = _rows_of(calls)
    return (
        FactorBatch(
            tuple(call.inputs for call in calls),
            whole if structure.counts_all_inputs else weights,
            _inverse(rows, layer.weight),
            rows,
            structure,
        ),
        FactorBatch(
            tuple(call.gradients for call in calls),
            weights,
            scale / scaled_by**2,
            terms if options.loss_reduction == "positions_mean" else count,
        ),
    )


def positions_of(layers: Iterable[TrackedLayer]) -> dict[str, int]:
    """Returns samples × positions behind the next step, by the name of each layer called."""
    plans = {one.name: [c.plan for c in one.ledger.read() if c.is_of(0)] for one in layers}
    sums = {name: sum(p.samples * p.positions for p in own) for name, own in plans.items()}
    return {name: rows for name, rows in sums.items() if rows}


def count_rows(calls: Iterable[Call]) -> None:
    """Asks the devices once which shares of the calls' rows are padding."""
    waiting: dict[torch.device, list[tuple[Call, Tensor]]] = defaultdict(list)
    for call in calls:
        if call.counted is not None:
            waiting[call.counted.device].append((call, call.counted))
    for alike in waiting.values():
        flags = [own for _, own in alike]
        equal = len({len(own) for own in flags}) == 1
        sums = torch.stack(flags).sum(1) if equal else torch.stack([own.sum() for own in flags])
        for (call, own), count in zip(alike, sums.tolist(), strict=True):
            call.counted, call.share = None, count / len(own)


def divide_sums(calls: Sequence[Call], reduction: LossReduction) -> None:
    """Makes of gradients of sampled losses, which are sums, those of the step's own reduction.

    Draws of one forward pass are of the same samples; those of several add up.
    """
    group_of: dict[Draw, int] = {}
    for call in calls:
        if call.draw is not None:  # a layer that some passes leave out counts fewer of them
            group_of[call.draw] = max(call.group, group_of.get(call.draw, 0))
    if not group_of or reduction == "sum":
        return
    divisor = _of_each_pass(
        (group, draw.samples if reduction == "mean" else draw.terms)
        for draw, group in group_of.items()
    )
    for call in calls:
        if call.draw is not None:
            call.gradients, call.draw = call.gradients / divisor, None


def _summed_over_calls(calls: Sequence[Call]) -> list[Call]:
    """Sums the samples' gradients over the calls of one forward pass."""
    passes: dict[tuple[int, int], list[Call]] = defaultdict(list)
    for call in calls:
        passes[call.group, call.plan.samples].append(call)
    return [
        replace(alike[0], gradients=torch.stack([call.gradients for call in alike]).sum(0))
        for alike in passes.values()
    ]


def _of_each_pass(found: Iterable[tuple[int, float]]) -> float:
    """What forward passes have together: the largest number of the calls of each."""
    passes: dict[int, float] = defaultdict(float)
    for group, number in found:
        passes[group] = max(passes[group], number)
    return sum(passes.values())


def _rows_of(calls: Sequence[Call]) -> float | tuple[float, ...]:
    """R, rows that the taken ones stand for; one a matrix where calls cover different ones."""
    if all(call.covers is None for call in calls):
        return sum(call.rows for call in calls)
    matrices = range(len(calls[0].gradients))
    return tuple(sum(call.rows for call in calls if call.is_of(matrix)) for matrix in matrices)


def _inverse(rows: float | tuple[float, ...], weight: Tensor) -> float | Tensor:
    if not isinstance(rows, tuple):
        return 1.0 / rows
    dtype = torch.promote_types(weight.dtype, torch.float32)
    shares = [1.0 / max(count, 1) for count in rows]
    return torch.tensor(shares, dtype=dtype, device=weight.device)
