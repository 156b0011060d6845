"""Which way each parameter takes in a step, found once for the steps that are alike.

Steps differ only where groups, layers or curvature have changed, or others have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch_thor.directions.plan import DirectionPlan
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import lots_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import Control
    from torch_thor.linalg.foreach import Lots
    from torch_thor.update.groups import ParameterGroup


@dataclass(frozen=True)
class GroupPlan:
    """A parameter group sorted by how its parameters step.

    Args:
        group: The group.
        layers: Tracked layers whose weight is in it.
        curved: Parameters of those that have curvature.
        plain: All others, which step by the base rule.
        curved_lots: Which of the curved go together, in a plan.
        plain_lots: Which of the plain go together, in a plan.
    """

    group: ParameterGroup
    layers: tuple[TrackedLayer, ...]
    curved: tuple[nn.Parameter, ...]
    plain: tuple[nn.Parameter, ...]
    curved_lots: Lots = ()
    plain_lots: Lots = ()

    def follows(self, group: ParameterGroup) -> bool:
        """Says whether this is still the plan of a group."""
        known = len(self.curved) + len(self.plain)
        return self.group is group and len(group["params"]) == known


def plan_groups(
    groups: Iterable[ParameterGroup],
    layer_of: Mapping[nn.Parameter, TrackedLayer],
    curved_by: Container[nn.Parameter],
) -> list[GroupPlan]:
    """Sorts each group's parameters into those with curvature and all others."""
    plans = []
    for group in groups:
        curved = tuple(p for p in group["params"] if p in curved_by)
        plain = tuple(p for p in group["params"] if p not in curved_by)
        owners = (layer_of[p] for p in group["params"] if p in layer_of and layer_of[p].weight is p)
        layers = tuple(owners)
        plans.append(GroupPlan(group, layers, curved, plain))
    return plans


@dataclass(frozen=True)
class StepPlan:
    """The ways of all parameters with a gradient.

    Args:
        groups: The plans, of the parameters that step together: all but those of large layers.
        directions: The way of the curved ones, and of large layers, through their curvature.
        group_of: The group of each parameter of a tracked layer.
    """

    groups: tuple[GroupPlan, ...]
    directions: DirectionPlan
    group_of: Mapping[nn.Parameter, ParameterGroup]


@dataclass(frozen=True)
class _Known:
    """A plan and what it was found for; groups and stacks are compared by identity."""

    plans: Sequence[GroupPlan]
    stacks: Sequence[LayerStack]
    ready: list[list[bool]]
    live: list[list[bool]]
    lots: Lots
    plan: StepPlan


class Planner:
    """Finds the groups' plans and the plan of a step, again only where something has changed.

    Args:
        control: Norm control.
    """

    def __init__(self, control: Control) -> None:
        """Knows no way yet."""
        self._control = control
        self._surveys = -1
        self._plans: list[GroupPlan] = []
        self._known: _Known | None = None

    def forget(self) -> None:
        """Finds all ways anew, as after a change of the groups' parameters."""
        self._surveys = -1

    def groups(
        self,
        groups: Sequence[ParameterGroup],
        surveys: int,
        layer_of: Mapping[nn.Parameter, TrackedLayer],
        curved_by: Container[nn.Parameter],
    ) -> list[GroupPlan]:
        """Returns the groups' plans.

        Args:
            groups: The optimizer's groups; loading a state replaces them.
            surveys: How often the two others have changed.
            layer_of: The tracked layer of each of their parameters.
            curved_by: Parameters that have curvature to step by.
        """
        same = surveys == self._surveys and len(groups) == len(self._plans)
        if not same or not all(p.follows(g) for p, g in zip(self._plans, groups, strict=True)):
            self._surveys = surveys
            self._plans = plan_groups(groups, layer_of, curved_by)
        return self._plans

    def plan(
        self, plans: Sequence[GroupPlan], stacks: Sequence[LayerStack], lots: Lots
    ) -> StepPlan:
        """Returns the plan of a step.

        Args:
            plans: The groups' plans.
            stacks: The model's curvature.
            lots: What a ``Sorter`` says of all gradients.
        """
        ready = [list(stack.ready) for stack in stacks]
        live = [[p.grad is not None for p in (*plan.curved, *plan.plain)] for plan in plans]
        known = self._known
        if known is None or not (
            known.plans is plans
            and known.stacks is stacks
            and known.ready == ready
            and known.live == live
            and known.lots is lots
        ):
            plan = self._find(plans, stacks)
            known = self._known = _Known(plans, stacks, ready, live, lots, plan)
        return known.plan

    def _find(self, plans: Sequence[GroupPlan], stacks: Sequence[LayerStack]) -> StepPlan:
        group_of = {parameter: plan.group for plan in plans for parameter in plan.curved}

        def moves(parameter: nn.Parameter) -> bool:
            return parameter in group_of and parameter.grad is not None

        directions = DirectionPlan(stacks, moves, self._control)
        groups = tuple(
            _moving(
                plan,
                tuple(filter(directions.goes_together, plan.curved)),
                tuple(p for p in plan.plain if p.grad is not None),
            )
            for plan in plans
        )
        return StepPlan(groups, directions, group_of)


def _moving(
    plan: GroupPlan, curved: tuple[nn.Parameter, ...], plain: tuple[nn.Parameter, ...]
) -> GroupPlan:
    """The plan of those parameters that move, sorted by what goes together."""
    return replace(
        plan, curved=curved, plain=plain, curved_lots=_lots(curved), plain_lots=_lots(plain)
    )


def _lots(parameters: Sequence[nn.Parameter]) -> Lots:
    gradients: list[Tensor] = [local(p.grad) for p in parameters if p.grad is not None]
    return lots_of([local(p) for p in parameters], gradients)
