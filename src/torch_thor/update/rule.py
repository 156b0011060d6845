"""How parameters move: those with curvature, and all others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch_thor.linalg.foreach import is_asynchronous
from torch_thor.update.base_rules import BASE_RULES, FirstOrder, bytes_of
from torch_thor.update.momentum import Moving, MovingRows, momentum_buffers

if TYPE_CHECKING:
    from collections.abc import Container

    import torch
    from torch import Tensor, nn

    from torch_thor.directions.controls import Control
    from torch_thor.options.update import Base, Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.momentum import States
    from torch_thor.update.plan import StepPlan


@dataclass(frozen=True)
class UpdateRule:
    """The rules of one optimizer; state is the optimizer's own and is handed in.

    Args:
        order: Order of preconditioning, momentum and decay.
        base: Rule of all parameters without curvature.
    """

    order: Update
    base: Base

    @cached_property
    def _first_order(self) -> FirstOrder:
        return BASE_RULES[self.base.rule](self.base, self.order)

    def can_defer(self, device: torch.device) -> bool:
        """Whether steps can be left out on a device alone, see ``step``, and gain by it."""
        return is_asynchronous(device) and self._first_order.takes_found_inf

    def step(
        self, plan: StepPlan, control: Control, states: States, found_inf: Tensor | None = None
    ) -> None:
        """Moves all parameters of a plan: large layers one by one, all others together.

        Where ``found_inf`` is one, all stay as they are, to the bit.
        """
        curved = [
            Moving(self.order, own.group, own.curved, states, own.curved_lots, None, found_inf)
            for own in plan.groups
        ]
        sources: dict[nn.Parameter, Tensor] = {}
        rates: dict[nn.Parameter, float] = {}
        for moving in curved:
            sources.update(zip(moving.parameters, moving.sources(), strict=True))
            if control.needs_rates:
                rates.update(dict.fromkeys(moving.parameters, float(moving.group["lr"])))
        directions = plan.directions.take(sources, rates, found_inf)
        for own, moving in zip(plan.groups, curved, strict=True):
            moving.move([directions[p] for p in own.curved])
            if own.plain:
                self._first_order.step(own.group, own.plain, states, own.plain_lots, found_inf)
        rows = MovingRows(self.order, plan.group_of, states)
        for large in plan.directions.banded:
            large.run(rows, control)

    def state_bytes(self, group: ParameterGroup, curved: Container[nn.Parameter]) -> int:
        """Bytes of the state that the parameters of a group have once all have stepped."""
        momentum = group["momentum"]
        return sum(
            bytes_of(p) * bool(momentum)
            if p in curved
            else self._first_order.state_bytes(p, momentum)
            for p in group["params"]
        )

    def allocate(
        self, group: ParameterGroup, curved: Container[nn.Parameter], states: States
    ) -> None:
        """Gives the parameters of a group the state that their first step would."""
        for parameter in group["params"]:
            if parameter not in curved:
                self._first_order.allocate(parameter, states[parameter], group["momentum"])
            elif group["momentum"]:
                momentum_buffers([parameter], [states[parameter]])

    def adopt(self, states: States) -> None:
        """Takes over a loaded state, which may come from another device or kernel."""
        self._first_order.adopt(states)
