"""MC Fisher: a loss whose labels are drawn from the model's own predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from torch_thor.options.checks import require_type

if TYPE_CHECKING:
    from torch_thor.options.curvature import LossReduction

Likelihood = Literal["categorical", "bernoulli", "normal"]


def sampled_loss(
    outputs: Tensor,
    likelihood: Likelihood,
    *,
    class_dim: int,
    reduction: LossReduction,
    generator: torch.Generator | None,
) -> Tensor:
    """Draws labels y ~ p(y | outputs) and returns -log p(y | outputs) with its graph.

    The mean of its squared gradients over draws is the Fisher information itself, and not
    the empirical one. Arguments as in ``sample_fisher``; ``"normal"`` has the loss ½(y - mean)².

    Raises:
        InvalidOptionError: For an unknown likelihood.
    """
    require_type("likelihood", likelihood, Likelihood)
    # Sums and draws of half types are too coarse.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    samples, entries = outputs.shape[0], outputs.numel()
    classes = outputs.shape[-1] if outputs.dim() > 1 else 1
    if likelihood == "categorical":
        logits = outputs.movedim(class_dim, -1).flatten(0, -2)
        classes = logits.shape[-1]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
        total = F.cross_entropy(logits, drawn.squeeze(-1), reduction="sum")
    elif likelihood == "bernoulli":
        drawn = torch.bernoulli(outputs.detach().sigmoid(), generator=generator)
        total = F.binary_cross_entropy_with_logits(outputs, drawn, reduction="sum")
    else:
        drawn = torch.normal(outputs.detach(), 1.0, generator=generator)
        total = 0.5 * (outputs - drawn).square().sum()
    divisor = {"mean": samples, "positions_mean": entries // classes, "sum": 1}[reduction]
    return total / divisor
