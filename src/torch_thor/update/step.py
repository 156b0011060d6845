"""One step: statistics → decision → refresh → direction → update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_thor.capture.scaling import calling_scaler
from torch_thor.directions.plan import all_finite
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import Lots, Sorter
from torch_thor.options.errors import NonFiniteGradientError, require
from torch_thor.update.groups import ParameterGroup, values_at
from torch_thor.update.plan import Planner
from torch_thor.update.skips import SkippedSteps, describe_nonfinite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor, nn

    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.options.norm_control import NormControl
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
        scaler: The GradScaler that the user named.
        skips: Steps that were left out.
    """

    def __init__(
        self,
        engine: CurvatureEngine,
        rule: UpdateRule,
        control: NormControl | None,
        schedules: Mapping[str, Schedule],
    ) -> None:
        """Knows no plan yet."""
        self._engine, self._rule, self._control = engine, rule, control
        self._schedules = schedules
        self.parameters: list[nn.Parameter] = []
        self.scaler: torch.amp.GradScaler | None = None
        self.skips = SkippedSteps()
        self._planner = Planner(control)
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
        scale = self._scale_in_force()
        if not finite:
            if engine.followed.is_sharded:
                # The other ranks, whose shards may be finite, count on this one.
                engine.update(scale)
            self._skip()
            return
        self.skips.in_a_row = 0
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
            plan.group.update(given)
            for layer in plan.layers:
                layer.damping = plan.group["damping"]
        self._engine.update(scale)

    def _group_plans(self, groups: list[ParameterGroup]) -> list[GroupPlan]:
        store, layer_of = self._engine.store, self._engine.followed.layer_of
        return self._planner.groups(groups, store.changes, layer_of, store.curved_by)

    def _are_finite(self, gradients: list[Tensor], lots: Lots) -> bool:
        ignored = self._engine.options.refresh.on_nonfinite == "ignore"
        return ignored or not gradients or all_finite(gradients, lots)

    def _scale_in_force(self) -> float:
        """What the losses behind the captured gradients were multiplied by."""
        if not self._engine.wants_statistics:
            return 1.0
        scaler = self.scaler or calling_scaler()
        if scaler is None or not scaler.is_enabled():
            return 1.0
        ours = self._engine.options.distributed.reduce_gradients
        allowed = "False with a GradScaler, whose scale is the rank's own: wrap the model in DDP"
        require("reduce_gradients", ours, not ours, allowed)
        return float(scaler.get_scale())

    def _skip(self) -> None:
        """Leaves a step out."""
        engine = self._engine
        engine.discard()
        if engine.options.refresh.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"At step {engine.steps} {describe_nonfinite(engine.model)}; nothing was changed. "
                "Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )
        self.skips.count(engine.steps, engine.model)
