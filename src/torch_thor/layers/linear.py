"""Linear maps over the last dimension: ``nn.Linear`` and GPT-2's ``Conv1D``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from torch_thor.layers.base import Geometry, LayerAdapter, ModuleT, with_ones

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan


def leading_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Samples and positions of leading dimensions ``(N, ...)``; none count as one sample."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


class LastDimensionAdapter(LayerAdapter[ModuleT]):
    """One matrix over the last dimension of inputs ``[N, ..., in]``."""

    has_tokens = True

    def call_shape(self, module: ModuleT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, the others positions."""
        return leading_shape(inputs.shape[:-1])

    def input_rows(self, module: ModuleT, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """Rows are the inputs themselves."""
        table = inputs.reshape(plan.samples, plan.positions, -1)
        return with_ones(plan.take_inputs(table), bias=bias).unsqueeze(0)

    def output_rows(self, module: ModuleT, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Rows are the output gradients themselves."""
        table = gradient.reshape(plan.samples, plan.positions, -1)
        return plan.take_gradients(table).unsqueeze(0)


class LinearAdapter(LastDimensionAdapter[nn.Linear]):
    """``nn.Linear``, weight ``[out, in]``."""

    def geometry(self, module: nn.Linear, *, bias: bool) -> Geometry:
        """One matrix."""
        return Geometry(1, module.out_features, module.in_features, bias)


class TransposedLinearAdapter(LastDimensionAdapter[nn.Module]):
    """``transformers``' ``Conv1D``, weight ``[in, out]``."""

    def geometry(self, module: nn.Module, *, bias: bool) -> Geometry:
        """One matrix, stored transposed."""
        inputs, outputs = module.get_parameter("weight").shape
        return Geometry(1, outputs, inputs, bias, transposed=True)


class SequenceFirstAdapter(LinearAdapter):
    """A Linear behind an attention whose inputs are ``[T, N, in]`` (``batch_first=False``)."""

    def samples_first(self, tensor: Tensor) -> Tensor:
        """Turns ``[T, N, d]`` round; without samples there is nothing to turn."""
        return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor


SEQUENCE_FIRST = SequenceFirstAdapter()
