"""MC Fisher: a loss whose labels are drawn from the model's own predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from torch_thor.options.checks import require_type

Likelihood = Literal["categorical", "bernoulli", "normal"]
_LEFT_OUT = -100  # torch's label of what a cross-entropy leaves out


def sampled_loss(
    outputs: Tensor,
    likelihood: Likelihood,
    *,
    class_dim: int,
    mask: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Draws labels y ~ p(y | outputs) and returns Σ -log p(y | outputs) with its graph.

    The mean of its squared gradients over draws is the Fisher information itself, and not
    the empirical one. Arguments as in ``sample_fisher``; ``"normal"`` has the loss ½(y - mean)².
    Where ``mask`` has the shape of the outputs without their classes, its False have no label.

    Raises:
        InvalidOptionError: For an unknown likelihood.
    """
    require_type("likelihood", likelihood, Likelihood)
    # Sums and draws of half types are too coarse.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    outputs = outputs.movedim(class_dim, -1) if outputs.dim() > 1 else outputs
    if mask is not None and mask.shape != outputs.shape[:-1]:
        mask = None
    # A draw from what is not finite is an error, of which a step has a way of its own.
    means = outputs.detach().nan_to_num()
    if likelihood == "categorical":
        logits = outputs.flatten(0, -2)
        drawn = torch.multinomial(means.flatten(0, -2).softmax(-1), 1, generator=generator)
        labels = drawn.squeeze(-1)
        if mask is not None:
            labels = labels.masked_fill(~mask.flatten().to(labels.device), _LEFT_OUT)
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=_LEFT_OUT)
    if likelihood == "bernoulli":
        drawn = torch.bernoulli(means.sigmoid(), generator=generator)
        losses = F.binary_cross_entropy_with_logits(outputs, drawn, reduction="none")
    else:
        drawn = torch.normal(means, 1.0, generator=generator)
        losses = 0.5 * (outputs - drawn).square()
    if mask is not None:
        losses = losses.masked_fill(~mask.unsqueeze(-1).to(losses.device), 0.0)
    return losses.sum()
