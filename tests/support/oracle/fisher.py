"""The Fisher information itself: the expectation over labels of the model, label by label."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def exact_gradient_factor(model: nn.Module, name: str, inputs: Tensor, kind: str) -> Tensor:
    """G of a Linear with labels in expectation: (1/N) Σ_n E_{y ~ p(y|x_n)} g(y) g(y)ᵀ.

    Args:
        model: outputs logits or means [N, classes].
        name: the Linear's name.
        inputs: [N, in].
        kind: "categorical"; "bernoulli" per output; "normal" with unit variance per output.
    """
    twin = copy.deepcopy(model).double()
    layer = twin.get_submodule(name)
    total = torch.zeros((), dtype=torch.float64)
    for sample in inputs.double():
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        outputs = twin(sample[None])
        handle.remove()
        classes = outputs.shape[1]
        columns = []
        for index in range(classes):
            (column,) = torch.autograd.grad(outputs[0, index], kept[0], retain_graph=True)
            columns.append(column[0])
        jacobian = torch.stack(columns)  # d outputs / d layer's output
        if kind == "categorical":
            p = outputs[0].detach().softmax(0)
            for label in range(classes):
                g = (p - torch.eye(classes).double()[label]) @ jacobian
                total = total + p[label] * torch.outer(g, g)
            continue
        for index in range(classes):
            q = outputs[0, index].detach().sigmoid()
            variance = q * (1 - q) if kind == "bernoulli" else 1.0
            total = total + variance * torch.outer(jacobian[index], jacobian[index])
    return total / len(inputs)
