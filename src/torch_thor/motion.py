"""How parameters move: momentum, weight decay, and the rule of those without curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.base import Base, adamw_step, allocate_state, sgd_step
from torch_thor.directions import precondition
from torch_thor.shards import local
from torch_thor.sweeps import gradient_of, ready_sweeps

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from torch_thor.directions import GroupPlan, ParameterGroup
    from torch_thor.options import NormControl, Update
    from torch_thor.stacks import LayerStack

States: TypeAlias = "Mapping[Any, Any]"


@dataclass(frozen=True)
class RowMotion:
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
        buffer = self._momentum(parameter, momentum)[rows]
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
            buffer = self._momentum(parameter, momentum)[rows]
            torch.add(direction, buffer, alpha=momentum, out=buffer)
            direction = direction.add_(buffer, alpha=momentum) if order.nesterov else buffer
        weight.add_(direction, alpha=-lr)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        allocate_state(Base(), parameter, self.states[parameter], momentum)
        buffer: Tensor = self.states[parameter]["momentum_buffer"]
        return buffer


@dataclass(frozen=True)
class Motion:
    """The rules of one optimizer; state is the optimizer's own and is handed in.

    Args:
        order: Order of preconditioning, momentum and decay.
        base: Rule of all parameters without curvature.
    """

    order: Update
    base: Base

    def step(
        self,
        plans: Sequence[GroupPlan],
        stacks: Sequence[LayerStack],
        control: NormControl | None,
        states: States,
    ) -> None:
        """Moves all parameters: large layers one by one, all others together.

        Args:
            plans: The groups.
            stacks: The model's curvature.
            control: Length of each layer's step.
            states: The optimizer's state.
        """
        groups = {parameter: plan.group for plan in plans for parameter in plan.curved}
        rule = RowMotion(self.order, groups, states)
        sweeps = ready_sweeps(stacks, rule, control)
        swept = {parameter for sweep in sweeps for parameter in sweep.layer.parameters}
        sources: dict[nn.Parameter, Tensor] = {}
        for plan in plans:
            sources |= self._sources(plan, states, swept)
        directions = precondition(stacks, sources, control, plans)
        for plan in plans:
            self._step_layers(plan, directions, states)
            self._step_base(plan, states)
        for sweep in sweeps:
            sweep.run(rule, control)

    def _sources(
        self, plan: GroupPlan, states: States, swept: Container[nn.Parameter]
    ) -> dict[nn.Parameter, Tensor]:
        """What is preconditioned of a group: gradients, or their momentum."""
        parameters = [p for p in plan.curved if p.grad is not None and p not in swept]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        momentum = plan.group["momentum"]
        if gradients and self.order.momentum_first and momentum:
            for parameter in parameters:
                allocate_state(Base(), parameter, states[parameter], momentum)
            buffers = [local(states[p]["momentum_buffer"]) for p in parameters]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, gradients)
            if self.order.nesterov:
                gradients = list(torch._foreach_add(gradients, buffers, alpha=momentum))
            else:
                gradients = buffers
        return dict(zip(parameters, gradients, strict=True))

    def _step_layers(
        self, plan: GroupPlan, directions: Mapping[nn.Parameter, Tensor], states: States
    ) -> None:
        """Adds decay and momentum to the directions of a group and moves the weights."""
        pairs = [(p, directions[p]) for p in plan.curved if p in directions]
        if not pairs:
            return
        parameters, steps = [p for p, _ in pairs], [step for _, step in pairs]
        weights = [local(parameter) for parameter in parameters]
        order, lr, decay = self.order, float(plan.group["lr"]), plan.group["weight_decay"]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            torch._foreach_mul_(weights, 1.0 - lr * decay)
        if order.momentum_first:
            torch._foreach_add_(weights, steps, alpha=-lr)
        else:
            coupled = 0.0 if order.decoupled_decay else decay
            self._sgd(plan.group, parameters, steps, states, lr=lr, weight_decay=coupled)

    def _step_base(self, plan: GroupPlan, states: States) -> None:
        """Steps the parameters of a group that have no curvature."""
        parameters = [p for p in plan.plain if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        base, group = self.base, plan.group
        lr = group["lr"] * base.lr_scale
        decay = group["weight_decay"] if base.weight_decay is None else base.weight_decay
        if base.rule == "adamw":
            own = [states[parameter] for parameter in parameters]
            adamw_step(base, parameters, gradients, own, lr=lr, weight_decay=decay)
        else:
            self._sgd(group, parameters, gradients, states, lr=lr, weight_decay=decay)

    def allocate(self, plan: GroupPlan, states: States) -> None:
        """Gives the parameters of a group the state that their first step would."""
        momentum = plan.group["momentum"]
        for parameter in plan.curved:
            allocate_state(Base(), parameter, states[parameter], momentum)
        for parameter in plan.plain:
            allocate_state(self.base, parameter, states[parameter], momentum)

    def _sgd(
        self,
        group: ParameterGroup,
        parameters: list[nn.Parameter],
        steps: list[Tensor],
        states: States,
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        sgd_step(
            parameters,
            steps,
            [states[p] for p in parameters],
            lr=lr,
            weight_decay=weight_decay,
            momentum=group["momentum"],
            nesterov=self.order.nesterov,
            fused=self.base.fused,
        )
