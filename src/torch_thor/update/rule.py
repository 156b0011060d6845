"""How parameters move: those with curvature, and all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import is_asynchronous, lots_of
from torch_thor.update.base_rules import BASE_RULES, FirstOrder, bytes_of
from torch_thor.update.matrix_rules import MATRIX_RULES
from torch_thor.update.momentum import Moving, MovingRows, momentum_buffers
from torch_thor.update.overshoot import Overshoot

if TYPE_CHECKING:
    from collections.abc import Container

    from torch import Tensor, nn

    from torch_thor.capture.followed import FollowedModel
    from torch_thor.directions.controls import Control
    from torch_thor.options.update import Base, Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.momentum import States
    from torch_thor.update.plan import GroupPlan, StepPlan


@dataclass(frozen=True)
class UpdateRule:
    """The rules of one optimizer; state is the optimizer's own and is handed in.

    Args:
        order: Order of preconditioning, momentum and decay.
        base: Rule of all parameters without curvature.
        followed: The model, for which of these are matrices.
    """

    order: Update
    base: Base
    followed: FollowedModel = field(repr=False, compare=False)

    @cached_property
    def overshoot(self) -> Overshoot:
        """What share of their rates steps are taken with."""
        return Overshoot(self.order.overshoot)

    @cached_property
    def _first_order(self) -> FirstOrder:
        return BASE_RULES[self.base.rule](self.base, self.order)

    def can_defer(self, device: torch.device) -> bool:
        """Whether steps can be left out on a device alone, see ``step``, and gain by it."""
        takes = self._first_order.takes_found_inf and not self.followed.matrices
        return is_asynchronous(device) and takes

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
        self.overshoot.follow(curved, directions)
        for own, moving in zip(plan.groups, curved, strict=True):
            moving.move([directions[p] for p in own.curved])
            if own.plain:
                self._move_plain(own, states, found_inf)
        rows = MovingRows(self.order, plan.group_of, states)
        for large in plan.directions.banded:
            large.run(rows, control)

    def _move_plain(self, own: GroupPlan, states: States, found_inf: Tensor | None) -> None:
        """Moves the parameters of a group that have no curvature."""
        shapes, plain, lots = self.followed.matrices, own.plain, own.plain_lots
        matrices = [p for p in plain if p in shapes and gradient_of(p).layout is torch.strided]
        if matrices:
            MATRIX_RULES[self.base.matrices](self.order, own.group).step(matrices, shapes, states)
            taken = set(matrices)
            plain = [p for p in plain if p not in taken]
            lots = lots_of([local(p) for p in plain], [local(gradient_of(p)) for p in plain])
        if plain:
            self._first_order.step(own.group, plain, states, lots, found_inf)

    def _has_momentum_alone(self, parameter: nn.Parameter, curved: Container[nn.Parameter]) -> bool:
        return parameter in curved or parameter in self.followed.matrices

    def state_bytes(self, group: ParameterGroup, curved: Container[nn.Parameter]) -> int:
        """Bytes of the state that the parameters of a group have once all have stepped."""
        momentum = group["momentum"]
        return sum(
            bytes_of(p) * bool(momentum)
            if self._has_momentum_alone(p, curved)
            else self._first_order.state_bytes(p, momentum)
            for p in group["params"]
        )

    def allocate(
        self, group: ParameterGroup, curved: Container[nn.Parameter], states: States
    ) -> None:
        """Gives the parameters of a group the state that their first step would."""
        for parameter in group["params"]:
            if not self._has_momentum_alone(parameter, curved):
                self._first_order.allocate(parameter, states[parameter], group["momentum"])
            elif group["momentum"]:
                momentum_buffers([parameter], [states[parameter]])

    def adopt(self, states: States) -> None:
        """Takes over a loaded state, which may come from another device or kernel."""
        self._first_order.adopt(states)
