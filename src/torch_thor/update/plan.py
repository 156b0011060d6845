"""Which way each parameter takes in a step, found once for the steps that are alike.

Steps differ only where groups, layers or curvature have changed, or others have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch_thor.capture.snapshot import are_same
from torch_thor.directions.plan import DirectionPlan
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import is_asynchronous, lots_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from torch_thor.curvature.store import CurvatureStore
    from torch_thor.directions.controls import Control
    from torch_thor.linalg.foreach import Lots
    from torch_thor.update.groups import ParameterGroup


@dataclass(frozen=True)
class GroupPlan:
    """Those parameters of a group that move, sorted by how they do, and by what goes together."""

    group: ParameterGroup
    curved: Sequence[nn.Parameter]  # by their curvature, all but those of large layers
    curved_lots: Lots
    plain: Sequence[nn.Parameter]  # by the base rule
    plain_lots: Lots


@dataclass(frozen=True)
class StepPlan:
    """The ways of all parameters with a gradient."""

    groups: Sequence[GroupPlan]
    directions: DirectionPlan  # through the curvature, large layers included
    group_of: Mapping[nn.Parameter, ParameterGroup]  # of those with curvature
    can_defer: bool  # whether all move by calls for lists, on a device that the host runs ahead of

    @cached_property
    def curved(self) -> list[nn.Parameter]:
        """All that move by their curvature, but those of large layers."""
        return [parameter for own in self.groups for parameter in own.curved]

    def at(self, share: float) -> StepPlan:
        """Returns the plan with learning rates that are a share of the groups'."""
        if share == 1.0:
            return self

        slower = {
            id(own.group): {**own.group, "lr": own.group["lr"] * share} for own in self.groups
        }
        groups = [replace(own, group=slower[id(own.group)]) for own in self.groups]
        if not self.directions.banded:  # these alone ask for a parameter's group
            return replace(self, groups=groups)
        group_of = {p: slower[id(group)] for p, group in self.group_of.items()}
        return replace(self, groups=groups, group_of=group_of)


@dataclass(frozen=True)
class _Known:
    """A plan, and what it was found for; groups are compared by identity."""

    groups: Sequence[ParameterGroup]
    changes: int
    live: list[list[bool]]
    lots: Lots
    plan: StepPlan


class Planner:
    """Finds the plan of a step, again only where something has changed."""

    def __init__(self, store: CurvatureStore, control: Control) -> None:
        self._store, self._control = store, control
        self._known: _Known | None = None

    def forget(self) -> None:
        """Finds the plan anew, as after a change of the groups' parameters."""
        self._known = None

    def plan(self, groups: Sequence[ParameterGroup], lots: Lots) -> StepPlan:
        """Returns the plan of a step, given what a ``Sorter`` says of all gradients."""
        changes = self._store.changes
        live = [[p.grad is not None for p in group["params"]] for group in groups]
        known = self._known
        if known is None or not (
            known.changes == changes
            and known.lots is lots
            and known.live == live
            and are_same(known.groups, groups)
        ):
            plan = self._find(groups)
            known = self._known = _Known(list(groups), changes, live, lots, plan)
        return known.plan

    def _find(self, groups: Sequence[ParameterGroup]) -> StepPlan:
        curved_by = self._store.curved_by
        group_of = {p: group for group in groups for p in group["params"] if p in curved_by}

        def moves(parameter: nn.Parameter) -> bool:
            return parameter in group_of and parameter.grad is not None

        directions = DirectionPlan(self._store.stacks, moves, self._control)
        plans = []
        for group in groups:
            curved = [p for p in group["params"] if directions.goes_together(p)]
            plain = [p for p in group["params"] if p.grad is not None and p not in group_of]
            plans.append(GroupPlan(group, curved, _lots(curved), plain, _lots(plain)))
        moving = [p for plan in plans for p in (*plan.curved, *plan.plain)]
        can_defer = (
            bool(moving)
            and not directions.banded
            and all(lot.together for own in plans for lot in (*own.curved_lots, *own.plain_lots))
            and all(p.is_floating_point() and is_asynchronous(p.device) for p in moving)
        )
        return StepPlan(plans, directions, group_of, can_defer)


def _lots(parameters: Sequence[nn.Parameter]) -> Lots:
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    return lots_of([local(p) for p in parameters], gradients)
