"""How parameters move: momentum, weight decay, and the rule of those without curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.options.update import Base
from torch_thor.update.base_rules import adamw_step, allocate_state, place_counts, sgd_step
from torch_thor.update.groups import says
from torch_thor.update.momentum import LayerRule, Parts, RowUpdate

if TYPE_CHECKING:
    from collections.abc import Container

    from torch import Tensor, nn

    from torch_thor.directions.controls import Control
    from torch_thor.options.update import Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.momentum import States
    from torch_thor.update.plan import GroupPlan, StepPlan

_STEP_BYTES = 4  # of a parameter's count of steps


@dataclass(frozen=True)
class UpdateRule:
    """The rules of one optimizer; state is the optimizer's own and is handed in.

    Args:
        order: Order of preconditioning, momentum and decay.
        base: Rule of all parameters without curvature.
    """

    order: Update
    base: Base

    def step(self, plan: StepPlan, control: Control, states: States) -> None:
        """Moves all parameters: large layers one by one, all others together.

        Args:
            plan: Which way each takes.
            control: Length of each layer's step.
            states: The optimizer's state.
        """
        rule = LayerRule(self.order)
        curved = [Parts(own.group, own.curved, states, own.curved_lots) for own in plan.groups]
        sources: dict[nn.Parameter, Tensor] = {}
        rates: dict[nn.Parameter, float] = {}
        for parts in curved:
            sources.update(zip(parts.parameters, rule.sources(parts), strict=True))
            if control.needs_rates:
                rates.update(dict.fromkeys(parts.parameters, float(parts.group["lr"])))
        directions = plan.directions.take(sources, rates)
        for own, parts in zip(plan.groups, curved, strict=True):
            rule.move(parts, [directions[p] for p in parts.parameters])
            self._step_base(own, states)
        rows = RowUpdate(rule, plan.group_of, states)
        for large in plan.directions.banded:
            large.run(rows, control)

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
        state = [states[parameter] for parameter in own.plain]
        lots = own.plain_lots
        if base.rule == "adamw":
            adamw_step(base, own.plain, gradients, state, lots, lr=lr, weight_decay=decay)
        else:
            sgd_step(
                own.plain,
                gradients,
                state,
                lots,
                lr=float(lr),
                weight_decay=decay,
                momentum=group["momentum"],
                nesterov=self.order.nesterov,
                fused=base.fused,
            )

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


def _bytes(parameter: nn.Parameter) -> int:
    own = local(parameter)
    return own.numel() * own.element_size()
