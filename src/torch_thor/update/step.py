"""One step: statistics → decision → refresh → direction → update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_thor.directions.plan import all_finite
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import Lots, Sorter
from torch_thor.options.notices import warn
from torch_thor.update.groups import ParameterGroup, values_at
from torch_thor.update.plan import Planner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.directions.controls import Control
    from torch_thor.options.schedules import Schedule
    from torch_thor.update.plan import GroupPlan
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
        """Knows no plan yet."""
        self._engine, self._rule, self._control = engine, rule, control
        self._schedules = schedules
        self.parameters: list[nn.Parameter] = []
        self._planner = Planner(control)
        self._given: dict[int, dict[str, float]] = {}
        self._told_overruled = False
        self._sorter = Sorter()

    def serve(self, parameters: list[nn.Parameter]) -> None:
        """Steps other parameters from now on."""
        self.parameters = parameters
        self._planner.forget()
        self._engine.serve(parameters)

    def values(self, groups: list[ParameterGroup]) -> list[dict[str, float]]:
        """What schedules give to the groups in this step; checked before anything changes.

        Raises:
            InvalidOptionError: For what no step can take.
        """
        self._engine.calendar.check(self._engine.steps + 1)
        return values_at(groups, self._schedules, self._engine.steps)

    def take(
        self,
        groups: list[ParameterGroup],
        states: Mapping[Any, Any],
        values: list[dict[str, float]],
        tell: Callable[[bool], None],
    ) -> None:
        """Steps all parameters that have a gradient.

        Args:
            groups: The optimizer's groups.
            states: Its state.
            values: What schedules give to the groups.
            tell: Tells ranks without a batch whether the step is skipped.

        Raises:
            NonFiniteGradientError: Where a gradient is not finite and that is to be an error.
        """
        engine = self._engine
        engine.communicator.average_gradients(self.parameters)
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        lots = self._sorter.sort(gradients)
        finite = self._are_finite(gradients, lots)
        tell(not finite)
        scale = engine.scale_in_force()
        if not finite:
            engine.leave_out(scale)
            return
        engine.skips.in_a_row = 0
        self.refresh(groups, values, scale)
        plan = self._planner.plan(self._group_plans(groups), engine.stacks, lots)
        self._rule.step(plan, self._control, states)

    def refresh(
        self, groups: list[ParameterGroup], values: list[dict[str, float]], scale: float = 1.0
    ) -> None:
        """Takes in the statistics and refreshes what is due, without moving a weight.

        Args:
            groups: The optimizer's groups, which take scheduled values, and tell layers their λ.
            values: What schedules give to the groups.
            scale: What the losses behind the statistics were multiplied by.
        """
        for plan, given in zip(self._group_plans(groups), values, strict=True):
            self._tell_overruled(plan.group, given)
            plan.group.update(given)
            for layer in plan.layers:
                layer.damping = plan.group["damping"]
        self._engine.update(scale)

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

    def _group_plans(self, groups: list[ParameterGroup]) -> list[GroupPlan]:
        store, layer_of = self._engine.store, self._engine.followed.layer_of
        return self._planner.groups(groups, store.changes, layer_of, store.curved_by)

    def _are_finite(self, gradients: list[Tensor], lots: Lots) -> bool:
        ignored = self._engine.options.refresh.on_nonfinite == "ignore"
        return ignored or not gradients or all_finite(gradients, lots)
