"""Linear maps over the last dimension: ``nn.Linear``, GPT-2's ``Conv1D``, ``nn.Embedding``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.layers.adapter import LayerAdapter, ModuleT, leading_shape, with_ones
from torch_thor.layers.geometry import Geometry

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan


class LastDimensionAdapter(LayerAdapter[ModuleT]):
    """One matrix over the last dimension of inputs ``[N, ..., in]``."""

    has_tokens = True

    def call_shape(self, module: ModuleT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, the others positions."""
        return leading_shape(output.shape[:-1])

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
        weight: Any = module.weight
        inputs, outputs = weight.shape
        return Geometry(1, outputs, inputs, bias, transposed=True)


class SequenceFirstAdapter(LinearAdapter):
    """A Linear behind an attention whose inputs are ``[T, N, in]`` (``batch_first=False``)."""

    def samples_first(self, tensor: Tensor) -> Tensor:
        """Turns ``[T, N, d]`` round; without samples there is nothing to turn."""
        return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor


SEQUENCE_FIRST = SequenceFirstAdapter()


class EmbeddingAdapter(LastDimensionAdapter[nn.Embedding]):
    """``nn.Embedding``: A holds the frequency of every token, ``[V]`` numbers; G is a Linear's.

    The output for one token is a column of the matrix ``[D, V]``, so a is one-hot, and
    a row of zeros for ``padding_idx``, whose vector doesn't train.
    """

    by_default = False

    def geometry(self, module: nn.Embedding, *, bias: bool) -> Geometry:
        """One matrix ``[D, V]``, stored transposed."""
        vectors, width = module.num_embeddings, module.embedding_dim
        return Geometry(1, width, vectors, bias=False, transposed=True, one_hot=True)

    def input_rows(
        self, module: nn.Embedding, inputs: Tensor, plan: RowPlan, *, bias: bool
    ) -> Tensor:
        """All tokens, because counting them costs less than choosing some."""
        tokens = inputs.reshape(1, -1)
        if module.padding_idx is None:
            return tokens.clone()
        return torch.where(tokens == module.padding_idx, -1, tokens)

    def refusal(self, module: nn.Embedding) -> str:
        """Gradients that are no sum over rows, or are not dense, have no Kronecker factors."""
        if module.sparse:
            return "sparse gradients"
        return "gradient is scaled by frequency" if module.scale_grad_by_freq else ""
