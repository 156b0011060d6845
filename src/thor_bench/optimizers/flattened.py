"""Optimizers for matrices, on weights of any shape."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def as_matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Flattens all dimensions but the first, in the order that ``like``, or it, has in memory.

    Rules for matrices seldom depend on the order of columns, so a channels-last weight is viewed,
    not copied. Vectors and scalars stay.
    """
    like = tensor if like is None else like
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


def flattened(kind: Any) -> Any:
    """Returns the class of an optimizer that steps on views ``[out, rest]`` of its weights.

    Its state and its arithmetic are the optimizer's own.

    Args:
        kind: A class of torch optimizers.
    """

    class Flattened(kind):  # type: ignore[misc] # known at run time only
        """Takes weights, contiguous or channels-last, and the optimizer's options."""

        def __init__(self, weights: Iterable[nn.Parameter], **options: Any) -> None:
            self._weights = list(weights)
            self._views = [nn.Parameter(as_matrix(weight.detach())) for weight in self._weights]
            super().__init__(self._views, **options)

        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            """Takes one step; gradients are read from the weights, not from their views."""
            for weight, view in zip(self._weights, self._views, strict=True):
                view.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
            loss: float | None = super().step(closure)
            return loss

        def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's
            """Clears the gradients of the weights and of their views."""
            super().zero_grad(set_to_none)
            for weight in self._weights:
                weight.grad = None

    return Flattened
