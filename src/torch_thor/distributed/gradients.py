"""Gradients that no DistributedDataParallel averages: one flat message."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


def average_gradients(
    parameters: Iterable[Tensor], ranks: int, total: Callable[[Tensor], Tensor]
) -> None:
    """Replaces every ``.grad`` by its mean over the ranks.

    A rank without a gradient counts as zero, as in DistributedDataParallel; a parameter that
    has one nowhere keeps none.

    Args:
        parameters: The same on all ranks.
        ranks: W.
        total: Sums a message over the ranks.
    """
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.requires_grad:
            alike[parameter.dtype, parameter.device].append(parameter)
    for group in alike.values():
        _average(group, ranks, total)


def _average(parameters: list[Tensor], ranks: int, total: Callable[[Tensor], Tensor]) -> None:
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    present = gradients[0].new_tensor([p.grad is not None for p in parameters])
    message = torch.cat([present, *(gradient.flatten() for gradient in gradients)])
    # Gradients are divided first, so that half types do not overflow in the sum.
    message[len(present) :] /= ranks
    message = total(message).to(message.device)
    found, mean = message[: len(present)].tolist(), message[len(present) :]
    pieces = torch.split(mean, [gradient.numel() for gradient in gradients])
    for parameter, gradient, piece, anyone in zip(
        parameters, gradients, pieces, found, strict=True
    ):
        if anyone:
            parameter.grad = gradient.copy_(piece.view_as(gradient))
