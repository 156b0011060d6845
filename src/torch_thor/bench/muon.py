"""torch.optim.Muon on convolutions too."""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn


def as_matrix(tensor: Tensor) -> Tensor:
    """Flattens all dimensions but the first, in the order of memory.

    Orthogonalization does not depend on the order of columns, so a channels-last weight is viewed,
    not copied.

    Args:
        tensor: ``[out, ...]``.

    Returns:
        ``[out, rest]``; a view where the layout is contiguous or channels-last.
    """
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


class FlattenedMuon(torch.optim.Muon):
    """Muon for weights of two and more dimensions, each taken as a matrix ``[out, rest]``.

    torch's Muon takes matrices only. This one steps on views of the weights, so that its state and
    its arithmetic are torch's own.

    Args:
        weights: Weights of at least two dimensions; contiguous or channels-last.
        lr: Learning rate.
        momentum: Momentum before the orthogonalization.
        weight_decay: Decoupled decay.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        self._weights = list(weights)
        self._views = [nn.Parameter(as_matrix(weight.detach())) for weight in self._weights]
        super().__init__(self._views, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; gradients are read from the weights, not from their views."""
        for weight, view in zip(self._weights, self._views, strict=True):
            if weight.grad is None:
                view.grad = None
                continue
            grad = weight.grad
            if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
                grad = grad.contiguous(memory_format=torch.channels_last)
            view.grad = as_matrix(grad)
        loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clears the gradients of the weights and of their views."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None
