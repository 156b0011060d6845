"""Products with the Jacobian of residuals, exact, without the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class JacobianProducts:
    """J d for directions d of the parameters, by running backward twice.

    Jᵀv is linear in v, so its gradient with respect to v along d is J d. That takes one graph for
    all directions, and holds for residuals that are themselves made of gradients.

    Args:
        residuals: ``[n]``, with their graph, which is kept.
        parameters: What they are differentiated by.
    """

    def __init__(self, residuals: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._cotangent = torch.zeros_like(residuals, requires_grad=True)
        self._pulled: tuple[Tensor | None, ...] = torch.autograd.grad(
            residuals, parameters, self._cotangent, create_graph=True, allow_unused=True
        )

    def __call__(self, direction: Sequence[Tensor]) -> Tensor:
        """Returns J d, ``[n]``; one tensor of the direction for each parameter."""
        pairs = zip(self._pulled, direction, strict=True)
        known = [(p, d) for p, d in pairs if p is not None and p.requires_grad]
        if not known:
            return torch.zeros_like(self._cotangent)
        outputs, along = zip(*known, strict=True)
        (product,) = torch.autograd.grad(outputs, self._cotangent, along, retain_graph=True)
        return product.detach()
