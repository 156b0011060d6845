"""The rule of momentum and decay: of whole parameters together, or of some rows of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import ONE_BY_ONE, Lots, add, add_, mul_, renew_
from torch_thor.update.fused import kept_alike, renew_fused, save_passes, step_fused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch_thor.options.update import Update
    from torch_thor.update.groups import ParameterGroup

ParameterState: TypeAlias = dict[str, Any]
States: TypeAlias = "Mapping[Any, Any]"


def momentum_buffers(
    parameters: Sequence[Tensor], states: Sequence[ParameterState], *, alike: bool = False
) -> list[Tensor]:
    """Returns this rank's part of each parameter's momentum; a first one is zero.

    Fused kernels need it ``alike``, see ``kept_alike``.
    """
    for parameter, state in zip(parameters, states, strict=True):
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
    if alike:
        return kept_alike("momentum_buffer", parameters, states)
    return [local(state["momentum_buffer"]) for state in states]


def after_momentum(
    lots: Lots, steps: list[Tensor], buffers: list[Tensor], momentum: float, *, nesterov: bool
) -> list[Tensor]:
    """Takes steps into their momentum, m ← momentum · m + step, and returns what steps become."""
    renew_(lots, buffers, steps, momentum)
    return add(lots, steps, buffers, alpha=momentum) if nesterov else buffers


def step_with_momentum(
    lots: Lots,
    weights: list[Tensor],
    steps: list[Tensor],
    buffers: Callable[[], list[Tensor]],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """Moves weights against steps, to which decay is added first, and then momentum."""
    if weight_decay:
        steps = add(lots, steps, weights, alpha=weight_decay)
    if momentum:
        steps = after_momentum(lots, steps, buffers(), momentum, nesterov=nesterov)
    add_(lots, weights, steps, alpha=-lr)


@dataclass(frozen=True)
class Moving:
    """Parameters of a group that step together by their curvature, or some rows of one."""

    order: Update
    group: ParameterGroup
    parameters: Sequence[nn.Parameter]
    states: States  # the optimizer's
    lots: Lots  # which of them go together
    rows: slice | None = None  # None: all
    found_inf: Tensor | None = None  # one where nothing is to move, if only the device knows

    def sources(self) -> list[Tensor]:
        """What is preconditioned: gradients, or their momentum, renewed."""
        gradients = [self._inside(local(gradient_of(p))) for p in self.parameters]
        momentum = self.group["momentum"]
        if not (gradients and self.order.momentum_first and momentum):
            return gradients
        nesterov, buffers = self.order.nesterov, self._buffers()
        if not self._fuses(buffers, gradients):
            return after_momentum(self.lots, gradients, buffers, momentum, nesterov=nesterov)
        renew_fused(self.lots, buffers, gradients, momentum, self.found_inf)
        return add(self.lots, gradients, buffers, alpha=momentum) if nesterov else buffers

    def _fuses(self, tensors: list[Tensor], steps: list[Tensor]) -> bool:
        """Whether fused kernels take steps: on a CPU where they save passes through memory."""
        return self.found_inf is not None or all(
            lot.together and save_passes(lot.take(tensors), lot.take(steps)) for lot in self.lots
        )

    def move(self, directions: list[Tensor], scale: float = 1.0) -> None:
        """Adds decay and momentum to ``scale`` times the directions and moves the weights."""
        if not directions:
            return
        order, group, lots = self.order, self.group, self.lots
        weights = [self._inside(local(parameter)) for parameter in self.parameters]
        if self._fuses(weights, directions):
            if scale != 1.0:
                mul_(lots, directions, scale)
            self._move_fused(weights, directions)
            return
        lr, decay = float(group["lr"]), group["weight_decay"]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            mul_(lots, weights, 1.0 - lr * decay)
        if order.momentum_first:
            add_(lots, weights, directions, alpha=-lr * scale)
            return
        if scale != 1.0:
            mul_(lots, directions, scale)
        step_with_momentum(
            lots,
            weights,
            directions,
            self._buffers,
            lr=lr,
            weight_decay=0.0 if order.decoupled_decay else decay,
            momentum=group["momentum"],
            nesterov=order.nesterov,
        )

    def _move_fused(self, weights: list[Tensor], directions: list[Tensor]) -> None:
        """The same in one call, unless ``found_inf``."""
        order, lots, lr = self.order, self.lots, self.group["lr"]
        lr = float(lr) if self.found_inf is None else lr
        decay, momentum = self.group["weight_decay"], self.group["momentum"]
        marked = {"found_inf": self.found_inf}
        if order.momentum_first:
            momentum = 0.0
        elif decay and order.decoupled_decay:
            step_fused(lots, weights, weights, [], lr=lr * decay, **marked)
            decay = 0.0
        buffers = self._buffers(alike=True) if momentum else []
        rule = {"weight_decay": decay, "momentum": momentum, "nesterov": order.nesterov}
        step_fused(lots, weights, directions, buffers, lr=lr, **marked, **rule)

    def _buffers(self, *, alike: bool = False) -> list[Tensor]:
        states = [self.states[p] for p in self.parameters]
        kept = momentum_buffers(self.parameters, states, alike=alike)
        return [self._inside(buffer) for buffer in kept]

    def _inside(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows]


@dataclass(frozen=True)
class MovingRows:
    """The same for large layers, some rows of a parameter at a time; a ``RowRule``."""

    order: Update
    groups: Mapping[nn.Parameter, ParameterGroup]
    states: States

    def source(self, parameter: nn.Parameter, rows: slice) -> Tensor:
        """Returns the rows of the gradient, or of its momentum, renewed."""
        return self._some(parameter, rows).sources()[0]

    def move(self, parameter: nn.Parameter, rows: slice, direction: Tensor, scale: float) -> None:
        """Moves the rows along ``scale`` times a direction."""
        self._some(parameter, rows).move([direction], scale)

    def _some(self, parameter: nn.Parameter, rows: slice) -> Moving:
        # A band lies in the cache, where fused kernels save nothing and take a pass for the scale.
        own = self.groups[parameter]
        return Moving(self.order, own, [parameter], self.states, ONE_BY_ONE, rows)
