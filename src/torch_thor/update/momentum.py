"""The rule of momentum and decay: of whole parameters together, or of some rows of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import ALL, Lots, add, add_, mul_

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch_thor.options.update import Update
    from torch_thor.update.groups import ParameterGroup

ParameterState: TypeAlias = dict[str, Any]
States: TypeAlias = "Mapping[Any, Any]"


def momentum_buffers(
    parameters: Sequence[Tensor], states: Sequence[ParameterState]
) -> list[Tensor]:
    """Returns this rank's part of each parameter's momentum; a first one is zero."""
    for parameter, state in zip(parameters, states, strict=True):
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
    return [local(state["momentum_buffer"]) for state in states]


def after_momentum(
    lots: Lots, steps: list[Tensor], buffers: list[Tensor], momentum: float, *, nesterov: bool
) -> list[Tensor]:
    """Takes steps into their momentum, m ← momentum · m + step, and returns what steps become."""
    mul_(lots, buffers, momentum)
    add_(lots, buffers, steps)
    return add(lots, steps, buffers, alpha=momentum) if nesterov else buffers


@dataclass(frozen=True)
class Moving:
    """Parameters of a group that step together by their curvature, or some rows of one.

    Args:
        order: Order of preconditioning, momentum and decay.
        group: The group.
        parameters: The parameters.
        states: The optimizer's state.
        lots: Which of them go together.
        rows: The rows; ``None`` for all.
    """

    order: Update
    group: ParameterGroup
    parameters: Sequence[nn.Parameter]
    states: States
    lots: Lots = ALL
    rows: slice | None = None

    def sources(self) -> list[Tensor]:
        """What is preconditioned: gradients, or their momentum, renewed."""
        gradients = [self._inside(local(gradient_of(p))) for p in self.parameters]
        if gradients and self.order.momentum_first and self.group["momentum"]:
            return self._after_momentum(gradients)
        return gradients

    def move(self, directions: list[Tensor], scale: float = 1.0) -> None:
        """Adds decay and momentum to ``scale`` times the directions and moves the weights."""
        if not directions:
            return
        order, lots = self.order, self.lots
        lr, decay = float(self.group["lr"]), self.group["weight_decay"]
        weights = [self._inside(local(parameter)) for parameter in self.parameters]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            mul_(lots, weights, 1.0 - lr * decay)
        if not order.momentum_first:
            if scale != 1.0:
                mul_(lots, directions, scale)
                scale = 1.0
            if decay and not order.decoupled_decay:
                directions = add(lots, directions, weights, alpha=decay)
            if self.group["momentum"]:
                directions = self._after_momentum(directions)
        add_(lots, weights, directions, alpha=-lr * scale)

    def _after_momentum(self, steps: list[Tensor]) -> list[Tensor]:
        kept = momentum_buffers(self.parameters, [self.states[p] for p in self.parameters])
        buffers = [self._inside(buffer) for buffer in kept]
        momentum, nesterov = self.group["momentum"], self.order.nesterov
        return after_momentum(self.lots, steps, buffers, momentum, nesterov=nesterov)

    def _inside(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows]


@dataclass(frozen=True)
class MovingRows:
    """The same for large layers, some rows of a parameter at a time; a ``RowRule``.

    Args:
        order: Order of preconditioning, momentum and decay.
        groups: The group of each parameter.
        states: The optimizer's state.
    """

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
        return Moving(self.order, self.groups[parameter], [parameter], self.states, rows=rows)
