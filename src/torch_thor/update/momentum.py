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


@dataclass(frozen=True)
class Parts:
    """Parameters of a group that step together, or some rows of one.

    Args:
        group: The group.
        parameters: The parameters.
        states: The optimizer's state.
        lots: Which of them go together.
        rows: The rows; ``None`` for all.
    """

    group: ParameterGroup
    parameters: Sequence[nn.Parameter]
    states: States
    lots: Lots = ALL
    rows: slice | None = None

    def weights(self) -> list[Tensor]:
        """This rank's part of the parameters."""
        return [self._inside(local(parameter)) for parameter in self.parameters]

    def gradients(self) -> list[Tensor]:
        """Their gradients."""
        return [self._inside(local(gradient_of(parameter))) for parameter in self.parameters]

    def buffers(self) -> list[Tensor]:
        """Their momentum."""
        states = [self.states[parameter] for parameter in self.parameters]
        return [self._inside(buffer) for buffer in momentum_buffers(self.parameters, states)]

    def _inside(self, tensor: Tensor) -> Tensor:
        return tensor if self.rows is None else tensor[self.rows]


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
class LayerRule:
    """How preconditioned parameters move.

    Args:
        order: Order of preconditioning, momentum and decay.
    """

    order: Update

    def sources(self, parts: Parts) -> list[Tensor]:
        """What is preconditioned: gradients, or their momentum."""
        gradients, momentum = parts.gradients(), parts.group["momentum"]
        if not (gradients and self.order.momentum_first and momentum):
            return gradients
        nesterov = self.order.nesterov
        return after_momentum(parts.lots, gradients, parts.buffers(), momentum, nesterov=nesterov)

    def move(self, parts: Parts, directions: list[Tensor], scale: float = 1.0) -> None:
        """Adds decay and momentum to ``scale`` times the directions and moves the weights."""
        if not directions:
            return
        order, group, lots = self.order, parts.group, parts.lots
        weights, lr = parts.weights(), float(group["lr"])
        decay, momentum = group["weight_decay"], group["momentum"]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            mul_(lots, weights, 1.0 - lr * decay)
        if not order.momentum_first:
            if scale != 1.0:
                mul_(lots, directions, scale)
                scale = 1.0
            if decay and not order.decoupled_decay:
                directions = add(lots, directions, weights, alpha=decay)
            if momentum:
                buffers, nesterov = parts.buffers(), order.nesterov
                directions = after_momentum(lots, directions, buffers, momentum, nesterov=nesterov)
        add_(lots, weights, directions, alpha=-lr * scale)


@dataclass(frozen=True)
class RowUpdate:
    """The same for large layers, some rows of a parameter at a time.

    Args:
        rule: How they move.
        groups: The group of each parameter.
        states: The optimizer's state.
    """

    rule: LayerRule
    groups: Mapping[nn.Parameter, ParameterGroup]
    states: States

    def moves(self, parameter: nn.Parameter) -> bool:
        """Says whether a parameter is the optimizer's and has a gradient."""
        return parameter in self.groups and parameter.grad is not None

    def source(self, parameter: nn.Parameter, rows: slice) -> Tensor:
        """Returns the rows of the gradient, or of its momentum, renewed."""
        return self.rule.sources(self._parts(parameter, rows))[0]

    def move(self, parameter: nn.Parameter, rows: slice, direction: Tensor, scale: float) -> None:
        """Moves the rows along ``scale`` times a direction."""
        self.rule.move(self._parts(parameter, rows), [direction], scale)

    def _parts(self, parameter: nn.Parameter, rows: slice) -> Parts:
        return Parts(self.groups[parameter], [parameter], self.states, rows=rows)
