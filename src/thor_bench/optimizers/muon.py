"""torch.optim.Muon on convolutions too, and on processors that only emulate bfloat16."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_thor import multiplies_bfloat16


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


class _Float32(TorchFunctionMode):
    """Lets float32 pass where torch's Muon asks for bfloat16 before its matrix products."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Calls everything as it is, but copies in the place of ``Tensor.bfloat16``."""
        if func is torch.Tensor.bfloat16:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


class FlattenedMuon(torch.optim.Muon):
    """Muon for weights of two and more dimensions, each taken as a matrix ``[out, rest]``.

    torch's Muon takes matrices only. This one steps on views of the weights, so that its state and
    its arithmetic are torch's own. Where bfloat16 is emulated, which takes a hundred times as long,
    it multiplies in float32.

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
        with self._products():
            loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        return loss

    def _products(self) -> AbstractContextManager[object]:
        native = multiplies_bfloat16(self._weights[0].device)
        return nullcontext() if native else _Float32()

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clears the gradients of the weights and of their views."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None
