"""How parameters move: momentum, weight decay, and the rule of those without curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.linalg import foreach
from torch_thor.options.update import Base
from torch_thor.update.base_rules import (
    adamw_step,
    allocate_state,
    momentum_buffers,
    place_counts,
    renew,
    sgd_step,
)
from torch_thor.update.groups import says

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from torch_thor.linalg.foreach import Lots
    from torch_thor.options.norm_control import NormControl
    from torch_thor.options.update import Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.plan import GroupPlan, StepPlan

States: TypeAlias = "Mapping[Any, Any]"

_STEP_BYTES = 4  # of a parameter's count of steps


@dataclass(frozen=True)
class RowUpdate:
    """The rules of preconditioned layers, some rows of a parameter at a time.

    Args:
        order: Order of preconditioning, momentum and decay.
        groups: The group of each parameter.
        states: The optimizer's state.
    """

    order: Update
    groups: Mapping[nn.Parameter, ParameterGroup]
    states: States

    def moves(self, parameter: nn.Parameter) -> bool:
        """Says whether a parameter is the optimizer's and has a gradient."""
        return parameter in self.groups and parameter.grad is not None

    def source(self, parameter: nn.Parameter, rows: slice) -> Tensor:
        """Returns the rows of the gradient, or of its momentum, renewed."""
        gradient, momentum = gradient_of(parameter)[rows], self.groups[parameter]["momentum"]
        if not (self.order.momentum_first and momentum):
            return gradient
        buffer = self._momentum(parameter)[rows]
        torch.add(gradient, buffer, alpha=momentum, out=buffer)
        return torch.add(gradient, buffer, alpha=momentum) if self.order.nesterov else buffer

    def move(self, parameter: nn.Parameter, rows: slice, direction: Tensor, scale: float) -> None:
        """Adds decay and momentum to ``scale`` times a direction and moves the weights."""
        order, group, weight = self.order, self.groups[parameter], parameter[rows]
        lr, decay, momentum = float(group["lr"]), group["weight_decay"], group["momentum"]
        if decay and (order.decoupled_decay or order.momentum_first):
            weight.mul_(1.0 - lr * decay)
        if order.momentum_first:
            weight.add_(direction, alpha=-lr * scale)
            return
        direction = direction * scale
        if decay and not order.decoupled_decay:
            direction.add_(weight, alpha=decay)
        if momentum:
            buffer = self._momentum(parameter)[rows]
            torch.add(direction, buffer, alpha=momentum, out=buffer)
            direction = direction.add_(buffer, alpha=momentum) if order.nesterov else buffer
        weight.add_(direction, alpha=-lr)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        return momentum_buffers([parameter], [self.states[parameter]])[0]


@dataclass(frozen=True)
class UpdateRule:
    """The rules of one optimizer; state is the optimizer's own and is handed in.

    Args:
        order: Order of preconditioning, momentum and decay.
        base: Rule of all parameters without curvature.
    """

    order: Update
    base: Base

    def step(self, plan: StepPlan, control: NormControl | None, states: States) -> None:
        """Moves all parameters: large layers one by one, all others together.

        Args:
            plan: Which way each takes.
            control: Length of each layer's step.
            states: The optimizer's state.
        """
        sources: dict[nn.Parameter, Tensor] = {}
        rates: dict[nn.Parameter, float] = {}
        for own in plan.groups:
            sources.update(zip(own.curved, self._sources(own, states), strict=True))
            if control is not None and control.kind == "kl_clip":
                rates.update(dict.fromkeys(own.curved, float(own.group["lr"])))
        directions = plan.directions.take(sources, rates)
        for own in plan.groups:
            self._step_layers(own, [directions[p] for p in own.curved], states)
            self._step_base(own, states)
        rule = RowUpdate(self.order, plan.group_of, states)
        for large in plan.banded:
            large.run(rule, control)

    def _sources(self, own: GroupPlan, states: States) -> list[Tensor]:
        """What is preconditioned of a group: gradients, or their momentum."""
        gradients = [local(gradient_of(parameter)) for parameter in own.curved]
        momentum = own.group["momentum"]
        if not (gradients and self.order.momentum_first and momentum):
            return gradients
        buffers = momentum_buffers(own.curved, [states[p] for p in own.curved])
        renew(own.curved_lots, buffers, gradients, momentum)
        if not self.order.nesterov:
            return buffers
        return foreach.add(own.curved_lots, gradients, buffers, alpha=momentum)

    def _step_layers(self, own: GroupPlan, steps: list[Tensor], states: States) -> None:
        """Adds decay and momentum to the directions of a group and moves the weights."""
        if not steps:
            return
        weights = [local(parameter) for parameter in own.curved]
        order, lr, decay = self.order, float(own.group["lr"]), own.group["weight_decay"]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            foreach.mul_(own.curved_lots, weights, 1.0 - lr * decay)
        if order.momentum_first:
            foreach.add_(own.curved_lots, weights, steps, alpha=-lr)
        else:
            coupled = 0.0 if order.decoupled_decay else decay
            lots = own.curved_lots
            self._sgd(own.group, own.curved, steps, states, lots, lr=lr, weight_decay=coupled)

    def _step_base(self, own: GroupPlan, states: States) -> None:
        """Steps the parameters of a group that have no curvature."""
        if not own.plain:
            return
        gradients = [gradient_of(parameter) for parameter in own.plain]
        base, group = self.base, own.group
        lr = group["lr"] * base.lr_scale
        decay = base.weight_decay
        if decay is None or says(group, "weight_decay"):
            decay = float(group["weight_decay"])
        if base.rule == "adamw":
            state = [states[parameter] for parameter in own.plain]
            adamw_step(base, own.plain, gradients, state, own.plain_lots, lr=lr, weight_decay=decay)
        else:
            lots, lr = own.plain_lots, float(lr)
            self._sgd(group, own.plain, gradients, states, lots, lr=lr, weight_decay=decay)

    def state_bytes(self, group: ParameterGroup, curved: Container[nn.Parameter]) -> int:
        """Bytes of the state that the parameters of a group have once all have stepped."""
        own = [parameter for parameter in group["params"] if parameter in curved]
        plain = [parameter for parameter in group["params"] if parameter not in curved]
        kept = sum(map(_bytes, own)) if group["momentum"] else 0
        if self.base.rule == "adamw":
            return kept + 2 * sum(map(_bytes, plain)) + _STEP_BYTES * len(plain)
        return kept + (sum(map(_bytes, plain)) if group["momentum"] else 0)

    def allocate(
        self, group: ParameterGroup, curved: Container[nn.Parameter], states: States
    ) -> None:
        """Gives the parameters of a group the state that their first step would."""
        for parameter in group["params"]:
            base = Base() if parameter in curved else self.base
            allocate_state(base, parameter, states[parameter], group["momentum"])

    def adopt(self, states: States) -> None:
        """Takes over a loaded state, which may come from another device or kernel."""
        place_counts(self.base, states)

    def _sgd(
        self,
        group: ParameterGroup,
        parameters: Sequence[nn.Parameter],
        steps: list[Tensor],
        states: States,
        lots: Lots,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        sgd_step(
            parameters,
            steps,
            [states[p] for p in parameters],
            lots,
            lr=lr,
            weight_decay=weight_decay,
            momentum=group["momentum"],
            nesterov=self.order.nesterov,
            fused=self.base.fused,
        )


def _bytes(parameter: nn.Parameter) -> int:
    own = local(parameter)
    return own.numel() * own.element_size()
