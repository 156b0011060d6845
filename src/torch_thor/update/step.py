"""One step: values of the groups, refresh, direction, update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_thor.options.notices import warn
from torch_thor.update.groups import ParameterGroup, values_at
from torch_thor.update.plan import Planner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.directions.controls import Control
    from torch_thor.linalg.foreach import Lots
    from torch_thor.options.schedules import Schedule
    from torch_thor.update.momentum import States
    from torch_thor.update.rule import UpdateRule


class Step:
    """The way of all gradients of a model into its weights.

    Args:
        engine: The curvature.
        rule: How parameters move.
        control: Length of each layer's step.
        schedules: Of learning rate and damping, as far as these are scheduled.

    Attributes:
        parameters: All that are stepped, in the order of the groups.
    """

    def __init__(
        self,
        engine: CurvatureEngine,
        rule: UpdateRule,
        control: Control,
        schedules: Mapping[str, Schedule],
    ) -> None:
        self._engine, self._rule, self._control = engine, rule, control
        self._schedules = schedules
        self.parameters: list[nn.Parameter] = []
        self._planner = Planner(engine.store, control)
        self._given: dict[int, dict[str, float]] = {}
        self._told_overruled = False

    def serve(self, parameters: list[nn.Parameter]) -> None:
        """Steps other parameters from now on."""
        self.parameters = parameters
        self._planner.forget()
        self._engine.serve(parameters)

    def values(self, groups: list[ParameterGroup]) -> list[dict[str, float]]:
        """What schedules give to the groups in this step; checked before anything changes."""
        self._engine.calendar.check(self._engine.steps + 1)
        return values_at(groups, self._schedules, self._engine.steps)

    def dampings(self, groups: list[ParameterGroup]) -> dict[nn.Parameter, float]:
        """λ of each parameter, in steps that need it."""
        if not self._engine.wants_statistics:
            return {}
        return {p: group["damping"] for group in groups for p in group["params"]}

    def refresh(
        self, groups: list[ParameterGroup], values: list[dict[str, float]], scale: float = 1.0
    ) -> None:
        """Takes in scheduled values and the statistics, of losses that were multiplied by scale."""
        for group, given in zip(groups, values, strict=True):
            self._tell_overruled(group, given)
            group.update(given)
        self._engine.update(self.dampings(groups), scale)

    def move(self, groups: list[ParameterGroup], states: States, lots: Lots) -> None:
        """Moves all parameters that have a gradient; ``lots`` says which of these go together."""
        self._rule.step(self._planner.plan(groups, lots), self._control, states)

    def _tell_overruled(self, group: ParameterGroup, given: dict[str, float]) -> None:
        """Warns, once, where somebody else sets what a schedule sets."""
        last = self._given.get(id(group), {})
        changed = [name for name, value in last.items() if name in given and group[name] != value]
        self._given[id(group)] = given
        if changed and not self._told_overruled:
            self._told_overruled = True
            warn(
                f"{changed[0]}={group[changed[0]]!r} of a parameter group was set by hand or by a "
                "scheduler, but this optimizer was built with a schedule for it, which holds. "
                f"Build it with a number, or give the group a {changed[0]} of its own."
            )

    def take_over(self) -> None:
        """Knows that the groups' values are others, as those of a checkpoint."""
        self._given.clear()
