"""First-order rules of every parameter outside the tracked layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from torch_thor.errors import InvalidOptionError, require
from torch_thor.shards import local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ParameterState = dict[str, Any]


@dataclass(frozen=True)
class Base:
    """First-order rule of every parameter outside the preconditioned layers.

    Args:
        rule: ``"sgd"`` or ``"adamw"``.
        lr_scale: Learning rate ÷ that of the group, so that schedulers move both.
        weight_decay: Decay of these parameters; ``None`` takes the group's.
        betas: AdamW's averages.
        eps: AdamW's ε.
        fused: As in ``torch.optim``; picks the kernel, not the result. ``None`` takes AdamW's
            fused one on the CPU, where torch would go through tensors one by one, and not
            SGD's, which rounds otherwise.

    Raises:
        InvalidOptionError: For values out of range.
    """

    rule: Literal["sgd", "adamw"] = "sgd"
    lr_scale: float = 1.0
    weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    fused: bool | None = None

    def __post_init__(self) -> None:
        """Validates the options."""
        if self.rule not in ("sgd", "adamw"):
            raise InvalidOptionError("base rule", self.rule, "'sgd' or 'adamw'")
        require("lr_scale", self.lr_scale, self.lr_scale > 0, "> 0")


def allocate_state(
    base: Base, parameter: nn.Parameter, state: ParameterState, momentum: float
) -> None:
    """Gives a parameter the state that its first step would."""
    if base.rule == "adamw" and "exp_avg" not in state:
        state["step"] = torch.zeros(
            (), dtype=torch.float32, device=_counting_device(base, parameter)
        )
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
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    fused: bool | None,
) -> None:
    """torch.optim.SGD's update over given directions, with its own state layout.

    Its arithmetic too, to the bit, but all tensors at once on any device and without writing to
    the steps: on the CPU torch's own goes through them one by one, and its multi-tensor kernel
    leaves Nesterov's sum in the gradients.
    """
    weights, steps = [local(p) for p in parameters], [local(step) for step in steps]
    buffers = momentum_buffers(parameters, states) if momentum else []
    if fused:
        sgd(
            weights,
            steps,
            [*buffers] or [None] * len(weights),
            fused=True,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=nesterov and momentum > 0,
            maximize=False,
        )
        return
    if weight_decay:
        steps = list(torch._foreach_add(steps, weights, alpha=weight_decay))
    if momentum:
        renew(buffers, steps, momentum)
        steps = list(torch._foreach_add(steps, buffers, alpha=momentum)) if nesterov else buffers
    torch._foreach_add_(weights, steps, alpha=-lr)


def momentum_buffers(
    parameters: Sequence[Tensor], states: Sequence[ParameterState]
) -> list[Tensor]:
    """Returns this rank's part of each parameter's momentum; a first one is zero."""
    for parameter, state in zip(parameters, states, strict=True):
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
    return [local(state["momentum_buffer"]) for state in states]


def renew(buffers: list[Tensor], steps: list[Tensor], momentum: float) -> None:
    """Takes steps into their momentum: m ← momentum · m + step."""
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, steps)


def adamw_step(
    base: Base,
    parameters: Sequence[nn.Parameter],
    gradients: list[Tensor],
    states: list[ParameterState],
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """torch.optim.AdamW's update, with its own state layout."""
    for parameter, state in zip(parameters, states, strict=True):
        allocate_state(base, parameter, state, momentum=0.0)
    weights, steps = [local(p) for p in parameters], [local(g) for g in gradients]
    adamw(
        weights,
        steps,
        [local(state["exp_avg"]) for state in states],
        [local(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        fused=_fuses(weights, steps) if base.fused is None else base.fused,
        amsgrad=False,
        beta1=base.betas[0],
        beta2=base.betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=base.eps,
        maximize=False,
    )


def _fuses(weights: list[Tensor], steps: list[Tensor]) -> bool | None:
    """True where torch's fused AdamW on the CPU can be taken; else torch's own choice.

    It walks through memory, so a gradient has to lie there in the order of its weight.
    """
    fitting = all(
        weight.device.type == "cpu"
        and weight.is_floating_point()
        and weight.stride() == step.stride()
        for weight, step in zip(weights, steps, strict=True)
    )
    return True if fitting else None
