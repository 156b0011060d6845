"""The rule of momentum and decay by torch's fused kernels: one pass, skipped on the device.

``found_inf`` is one where a gradient was not finite, as torch.amp has it: then all stays as it is,
to the bit, and the host need not know. A learning rate may be a tensor beside the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.layers.shards import local

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch_thor.linalg.foreach import Lots

_MANY = 1 << 17  # entries from which a CPU's passes through memory cost more than calls


@torch.compiler.disable  # type: ignore[untyped-decorator] # a compiler has no kernels for them
def step_fused(
    lots: Lots,
    weights: Sequence[Tensor],
    steps: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    lr: float | Tensor,
    found_inf: Tensor | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Moves weights against steps, to which decay is added first, and then momentum, if any."""
    for lot in lots:
        own = lot.take(weights)
        device = own[0].device
        rate = lr.to(device, torch.float32, non_blocking=True) if isinstance(lr, Tensor) else lr
        torch._fused_sgd_(
            own,
            laid_like(own, lot.take(steps)),
            lot.take(buffers) if momentum else [],
            weight_decay=weight_decay,
            momentum=momentum,
            lr=rate,
            dampening=0.0,
            nesterov=nesterov and momentum > 0,
            maximize=False,
            is_first_step=False,
            grad_scale=None,
            found_inf=None if found_inf is None else found_inf.to(device, non_blocking=True),
        )


def renew_fused(
    lots: Lots,
    buffers: Sequence[Tensor],
    steps: Sequence[Tensor],
    momentum: float,
    found_inf: Tensor | None,
) -> None:
    """Takes steps into their momentum, m ← m + (step - (1 - momentum) · m)."""
    decay = momentum - 1.0
    step_fused(lots, buffers, steps, [], found_inf=found_inf, lr=-1.0, weight_decay=decay)


def save_passes(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> bool:
    """Whether the kernels save time on a CPU: many entries, whose order in memory is the same."""
    first = weights[0]
    if first.device.type != "cpu" or not first.is_floating_point():
        return False
    alike = all(x.stride() == y.stride() for x, y in zip(weights, steps, strict=True))
    return alike and sum(weight.numel() for weight in weights) >= _MANY


def laid_like(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> list[Tensor]:
    """Returns steps of the weights' type and strides, which the kernels go by."""
    found = list(steps)
    others = [
        place
        for place, (one, step) in enumerate(zip(weights, steps, strict=True))
        if one.stride() != step.stride() or one.dtype != step.dtype
    ]
    if others:
        copies = _empty_like([weights[place] for place in others])
        torch._foreach_copy_(copies, [steps[place] for place in others])
        for place, copy in zip(others, copies, strict=True):
            found[place] = copy
    return found


def kept_alike(
    name: str, parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]
) -> list[Tensor]:
    """Returns this rank's part of something that states keep, in the order of the parameters.

    Checkpoints of models in another memory format, and ``model.to(memory_format=...)``, bring
    another order, and the kernels would take entries of other places.
    """
    for parameter, state in zip(parameters, states, strict=True):
        kept = state[name]
        if local(kept).stride() != local(parameter).stride():
            state[name] = torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)
    return [local(state[name]) for state in states]


def _empty_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Memory for tensors of one type; in one piece for those that are contiguous."""
    plain = [one.is_contiguous() for one in tensors]
    sizes = [one.numel() for one, fits in zip(tensors, plain, strict=True) if fits]
    pieces = iter(tensors[0].new_empty(sum(sizes)).split(sizes))
    return [
        next(pieces).view(one.shape) if fits else torch.empty_like(one)
        for one, fits in zip(tensors, plain, strict=True)
    ]
