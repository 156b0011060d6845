"""``nn.Embedding``: a linear map of one-hot rows, whose A is diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.layers.base import Geometry, LayerAdapter
from torch_thor.layers.linear import leading_shape

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan


class EmbeddingAdapter(LayerAdapter[nn.Embedding]):
    """A holds the frequency of every token, ``[V]`` numbers; G is as a Linear's.

    The output for one token is a column of the matrix ``[D, V]``, so a is one-hot, and
    a row of zeros for ``padding_idx``, whose vector doesn't train.
    """

    by_default = False
    has_tokens = True

    def geometry(self, module: nn.Embedding, *, bias: bool) -> Geometry:
        """One matrix ``[D, V]``, stored transposed."""
        return Geometry(
            1,
            module.embedding_dim,
            module.num_embeddings,
            bias=False,
            transposed=True,
            one_hot=True,
        )

    def call_shape(self, module: nn.Embedding, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, the others positions."""
        return leading_shape(inputs.shape)

    def input_rows(
        self, module: nn.Embedding, inputs: Tensor, plan: RowPlan, *, bias: bool
    ) -> Tensor:
        """All tokens, because counting them costs less than choosing some."""
        tokens = inputs.reshape(1, -1)
        if module.padding_idx is None:
            return tokens.clone()
        return torch.where(tokens == module.padding_idx, -1, tokens)

    def output_rows(self, module: nn.Embedding, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Rows are the output gradients themselves."""
        table = gradient.reshape(plan.samples, plan.positions, -1)
        return plan.take_gradients(table).unsqueeze(0)

    def refusal(self, module: nn.Embedding) -> str:
        """Gradients that are no sum over rows, or are not dense, have no Kronecker factors."""
        if module.sparse:
            return "sparse gradients"
        return "gradient is scaled by frequency" if module.scale_grad_by_freq else ""
