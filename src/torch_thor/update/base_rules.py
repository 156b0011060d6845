"""First-order rules of every parameter outside the tracked layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import ALL, Lots, add, add_
from torch_thor.options.errors import require
from torch_thor.update.momentum import ParameterState, after_momentum, momentum_buffers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch_thor.options.update import Base


def allocate_state(
    base: Base, parameter: nn.Parameter, state: ParameterState, momentum: float
) -> None:
    """Gives a parameter the state that its first step would."""
    if base.rule == "adamw" and "exp_avg" not in state:
        device = _counting_device(base, parameter)
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    elif base.rule == "sgd" and momentum:
        momentum_buffers([parameter], [state])


def _counting_device(base: Base, parameter: nn.Parameter) -> torch.device:
    """Where torch's AdamW counts steps: fused kernels beside the parameter, others on the CPU."""
    return parameter.device if base.fused else torch.device("cpu")


def place_counts(base: Base, states: Mapping[Any, ParameterState]) -> None:
    """Moves counts of steps from a checkpoint to where the kernels in use expect them."""
    for parameter, state in states.items():
        if "step" in state:
            state["step"] = state["step"].to(_counting_device(base, parameter))


def sgd_step(
    parameters: Sequence[nn.Parameter],
    steps: list[Tensor],
    states: list[ParameterState],
    lots: Lots,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    fused: bool | None,
) -> None:
    """torch.optim.SGD's update over given directions, with its own state layout.

    Its arithmetic too, to the bit, but without writing to the steps, and all tensors that go
    together at once: on the CPU torch's own goes through them one by one, and its multi-tensor
    kernel leaves Nesterov's sum in the gradients.

    Args:
        parameters: What moves.
        steps: Its directions.
        states: Its state.
        lots: Which of them go together.
        lr: Learning rate.
        weight_decay: Coupled decay.
        momentum: Momentum factor.
        nesterov: Nesterov's momentum.
        fused: See ``Base``.
    """
    rule: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    rule["nesterov"] = nesterov and momentum > 0
    for lot in lots:
        own, directions = lot.take(parameters), [local(step) for step in lot.take(steps)]
        if lot.together and not (fused and own[0].is_floating_point()):
            _sgd_together(own, directions, lot.take(states), **rule)
        else:
            _sgd_of_torch(own, directions, lot.take(states), fused=lot.together, **rule)


def _sgd_together(
    parameters: Sequence[nn.Parameter],
    steps: list[Tensor],
    states: list[ParameterState],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> None:
    weights = [local(parameter) for parameter in parameters]
    if weight_decay:
        steps = add(ALL, steps, weights, alpha=weight_decay)
    if momentum:
        buffers = momentum_buffers(parameters, states)
        steps = after_momentum(ALL, steps, buffers, momentum, nesterov=nesterov)
    add_(ALL, weights, steps, alpha=-lr)


def _sgd_of_torch(
    parameters: Sequence[nn.Parameter],
    steps: list[Tensor],
    states: list[ParameterState],
    *,
    fused: bool,
    **rule: Any,
) -> None:
    """SGD by torch's own functions, fused or one by one, which know every layout and type."""
    kept = [state.get("momentum_buffer") for state in states]
    if fused and rule["momentum"]:
        kept = list(momentum_buffers(parameters, states))
    buffers = [None if buffer is None else local(buffer) for buffer in kept]
    sgd(
        [local(parameter) for parameter in parameters],
        steps,
        buffers,
        has_sparse_grad=any(step.is_sparse for step in steps),
        foreach=False,
        fused=fused,
        dampening=0.0,
        maximize=False,
        **rule,
    )
    for state, before, buffer in zip(states, kept, buffers, strict=True):
        if before is None and buffer is not None:
            state["momentum_buffer"] = buffer


def adamw_step(
    base: Base,
    parameters: Sequence[nn.Parameter],
    gradients: list[Tensor],
    states: list[ParameterState],
    lots: Lots,
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """torch.optim.AdamW's update, with its own state layout.

    Raises:
        InvalidOptionError: For a sparse gradient, which AdamW has no rule for.
    """
    for parameter, state in zip(parameters, states, strict=True):
        allocate_state(base, parameter, state, momentum=0.0)
    for lot in lots:
        own = lot.take(states)
        weights = [local(parameter) for parameter in lot.take(parameters)]
        steps = [local(gradient) for gradient in lot.take(gradients)]
        for step in () if lot.together else steps:
            allowed = (
                "dense for the base rule 'adamw': take Base('sgd'), or an optimizer of its own"
            )
            require("gradient", step.layout, step.layout == torch.strided, allowed)
        adamw(
            weights,
            steps,
            [local(state["exp_avg"]) for state in own],
            [local(state["exp_avg_sq"]) for state in own],
            [],
            [state["step"] for state in own],
            fused=_fused(base, weights, steps) if lot.together else None,
            has_complex=any(weight.is_complex() for weight in weights),
            amsgrad=False,
            beta1=base.betas[0],
            beta2=base.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=base.eps,
            maximize=False,
        )


def _fused(base: Base, weights: list[Tensor], steps: list[Tensor]) -> bool | None:
    """Whether torch's fused AdamW is taken for tensors that go together; None: torch's choice.

    On the CPU it walks through memory, so a gradient has to lie there in the order of its weight.
    """
    if not weights[0].is_floating_point():
        return None
    if base.fused is not None:
        return base.fused
    fitting = weights[0].device.type == "cpu" and all(
        weight.stride() == step.stride() for weight, step in zip(weights, steps, strict=True)
    )
    return True if fitting else None
