"""A call of a layer whose output gradient has arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.capture.fisher import Draw
    from torch_thor.layers import Geometry
    from torch_thor.layers.rows import RowPlan


@dataclass(eq=False)
class Call:
    """One forward call of a layer whose output gradient has arrived.

    Args:
        geometry: Shape of the layer.
        inputs: Rows of A of all k matrices.
        gradients: ``[k, r, out]``.
        plan: Rows that were taken.
        group: Calls of one forward pass share a number, micro-batches differ.
        covers: Matrices that took part, where not all did; the others' rows are zeros.
        counted: Which of its rows are no padding; ``None`` where none is, or where ``share`` says.
        share: Share of the rows that are no padding.
        draw: What its loss was a sum over, where that is still to be divided.
    """

    geometry: Geometry
    inputs: Tensor
    gradients: Tensor
    plan: RowPlan
    group: int
    covers: range | None = None
    counted: Tensor | None = None
    share: float = 1.0
    draw: Draw | None = None

    @property
    def rows(self) -> float:
        """Rows that the taken ones stand for, without padding."""
        return self.plan.rows * self.share

    @property
    def terms(self) -> float:
        """Samples × positions, without padding."""
        return self.plan.samples * self.plan.positions * self.share

    def is_of(self, matrix: int) -> bool:
        """Whether a matrix took part."""
        return self.covers is None or matrix in self.covers

    def moves(self) -> bool:
        """Whether its gradient of the weight is anything but zero; waits for the device."""
        return self.geometry.structure.moves(self.geometry, self.inputs, self.gradients)

    def merge(self, more: Call) -> None:
        """Adds the gradients of another backward through the same forward."""
        self.gradients = self.gradients + more.gradients
        if self.counted is not None and more.counted is not None:
            structure = self.geometry.structure
            self.inputs = structure.where(more.counted, more.inputs, self.inputs)
            self.counted = self.counted | more.counted
