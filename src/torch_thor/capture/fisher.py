"""MC Fisher: a loss whose labels are drawn from the model's own predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from torch_thor.options.checks import require_type
from torch_thor.options.errors import require

Likelihood = Literal["categorical", "bernoulli", "normal"]


@dataclass(eq=False)
class Draw:
    """What a sampled loss is a sum over; the step that takes it in divides by all of them.

    Args:
        samples: Their number.
        terms: Positions that have a label.
    """

    samples: int
    terms: int


def sampled_loss(
    outputs: Tensor,
    likelihood: Likelihood,
    *,
    class_dim: int,
    mask: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Draw]:
    """Draws labels y ~ p(y | outputs) and returns Σ -log p(y | outputs) with its graph.

    The mean of its squared gradients over draws is the Fisher information itself, and not
    the empirical one. Arguments as in ``sample_fisher``; ``"normal"`` has the loss ½(y - mean)².
    Where ``mask`` is about the outputs' positions, its False have no label.

    Raises:
        InvalidOptionError: For an unknown likelihood, or outputs without classes that need some.
    """
    require_type("likelihood", likelihood, Likelihood)
    has_classes = outputs.dim() > 1 or likelihood != "categorical"
    require("outputs", list(outputs.shape), has_classes, "[N, ..., classes] for 'categorical'")
    # Sums and draws of half types are too coarse.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    samples = len(outputs)
    outputs = outputs.movedim(class_dim, -1) if outputs.dim() > 1 else outputs.unsqueeze(-1)
    if mask is not None and likelihood != "categorical" and mask.shape == outputs.shape:
        outputs = outputs.unsqueeze(-1)  # a position has one entry
    counts = None if mask is None else _labelled(mask.to(outputs.device), outputs.shape[:-1])
    # A draw from what is not finite is an error, of which a step has a way of its own.
    means = outputs.detach().nan_to_num()
    if likelihood == "categorical":
        logits = outputs.flatten(0, -2)
        drawn = torch.multinomial(means.flatten(0, -2).softmax(-1), 1, generator=generator)
        losses = F.cross_entropy(logits, drawn.squeeze(-1), reduction="none")
        losses = losses.view(outputs.shape[:-1])
    elif likelihood == "bernoulli":
        drawn = torch.bernoulli(means.sigmoid(), generator=generator)
        losses = F.binary_cross_entropy_with_logits(outputs, drawn, reduction="none").sum(-1)
    else:
        losses = 0.5 * (outputs - torch.normal(means, 1.0, generator=generator)).square().sum(-1)
    if counts is None:
        return losses.sum(), Draw(samples, losses.numel())
    return losses.masked_fill(~counts, 0.0).sum(), Draw(samples, max(int(counts.sum()), 1))


def _labelled(mask: Tensor, positions: torch.Size) -> Tensor | None:
    """Which positions of outputs have a label; ``None``: all, as the mask is about none of them."""
    for turned in (mask, mask.mT if mask.dim() == 2 else mask):  # positions first
        if turned.shape == positions:
            return turned
    return mask.flatten() if positions == (mask.numel(),) else None
