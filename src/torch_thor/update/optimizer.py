"""The optimizer: one step of natural-gradient training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from torch_thor.capture.snapshot import are_same
from torch_thor.curvature.surface import HasCurvature
from torch_thor.directions.controls import control_of
from torch_thor.distributed.description import describe
from torch_thor.options.errors import require
from torch_thor.options.norm_control import as_norm_control, check_norm_control
from torch_thor.options.schedules import ScheduledFloat, value_at
from torch_thor.options.update import Base, BaseRule, Update, as_base
from torch_thor.update.copying import CopiedWithModel
from torch_thor.update.groups import (
    OWN,
    ParameterGroup,
    ScheduledValues,
    as_groups,
    check_new_group,
    check_options,
    check_saved,
    tell_foreign,
)
from torch_thor.update.plan import Planner
from torch_thor.update.reports import ReportsSteps
from torch_thor.update.rule import UpdateRule

if TYPE_CHECKING:
    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.linalg.foreach import Lots
    from torch_thor.options.norm_control import NormControl, NormControlKind
    from torch_thor.update.plan import StepPlan

Parameters = Iterable[nn.Parameter] | Iterable[ParameterGroup]


class CurvatureOptimizer(CopiedWithModel, torch.optim.Optimizer, ReportsSteps):
    """The step that THOR, KFAC and EKFAC share.

    Args:
        engine: The curvature of the model.
        params: Parameters or groups; ``None`` takes all of the model.
        lr: Learning rate, a number or a schedule over steps.
        momentum: Momentum factor, in [0, 1).
        weight_decay: Weight decay, >= 0.
        norm_control: Length of each layer's step.
        update: Order of preconditioning, momentum and decay.
        base: Rule of all other parameters.
    """

    def __init__(
        self,
        engine: CurvatureEngine,
        params: Parameters | None,
        *,
        lr: ScheduledFloat,
        momentum: float,
        weight_decay: float,
        norm_control: NormControl | NormControlKind | None,
        update: Update,
        base: Base | BaseRule,
    ) -> None:
        try:
            check_options(update, lr=lr, momentum=momentum, weight_decay=weight_decay)
            HasCurvature.__init__(self, engine)
            self.norm_control = as_norm_control(norm_control)
            self._rule = UpdateRule(update, as_base(base), engine.followed)
            damping = engine.options.damping.value
            self._scheduled = ScheduledValues(lr=lr, damping=damping)
            defaults = {
                "lr": value_at(lr, 0, "lr"),
                "momentum": momentum,
                "weight_decay": weight_decay,
                "damping": value_at(damping, 0, "damping"),
            }
            self._control = control_of(self.norm_control)
            self._can_defer = self._rule.can_defer(engine.device)
            self._planner = Planner(engine.store, self._control)
            self._parameters: list[nn.Parameter] = []  # all that are stepped
            self._is_built = False
            chosen = engine.model.parameters() if params is None else params
            super().__init__(as_groups(chosen), defaults)
            tell_foreign(engine.model, self.param_groups, refuses=True)
            self._is_built = True
            self._follow_model()
            check_norm_control(self.norm_control, sharded=engine.followed.is_sharded)
            self._agree()
            engine.store.room.require(engine.layers)
        except Exception:
            engine.capture.hooks.remove()  # what was refused leaves no hooks
            raise

    def _agree(self) -> None:
        """Raises unless all ranks of a distributed run have the same options and groups."""
        groups = [
            {k: len(v) if k == "params" else v for k, v in g.items()} for g in self.param_groups
        ]
        options = (type(self), self._scheduled.schedules, self.norm_control, self._rule)
        ranks = self.engine.communicator
        ranks.agree("options of the optimizer", describe([*options, groups]))

    def add_param_group(self, param_group: ParameterGroup) -> None:
        """Adds a group, as any torch optimizer does.

        What the group says for itself it keeps: a schedule of ``lr`` or ``damping`` serves the
        others, and its own ``weight_decay`` holds for the base rule too.

        Raises:
            InvalidOptionError: For a value that no step could take, or a parameter whose
                gradients are sparse; nothing is added then.
        """
        check_new_group(self.engine.model, param_group, len(self.param_groups), self.defaults)
        super().add_param_group(param_group)
        if self._is_built:
            tell_foreign(self.engine.model, self.param_groups[-1:], refuses=False)
            self._follow_model()

    def _follow_model(self) -> None:
        """Keeps the curvature to the layers whose weight is in a group now."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not are_same(parameters, self._parameters):
            self._parameters = parameters
            self._planner.forget()
            self.engine.serve(parameters)
        self.engine.follow()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step: statistics → decision → refresh → direction → update.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            NonFiniteGradientError: Where a gradient is not finite and ``on_nonfinite`` is
                ``"raise"``; nothing has changed then.
            InvalidOptionError: Where a group or a schedule gives a value that no step can take;
                nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take_step(notify=True)
        return loss

    def _coming_values(self) -> list[dict[str, float]]:
        """What schedules give to the groups in this step; checked before anything changes."""
        steps = self.engine.steps
        self.engine.calendar.check(steps + 1)
        return self._scheduled.at(self.param_groups, steps)

    def _take_step(self, *, notify: bool) -> None:
        if coming := self._prepare(notify=notify):
            self._rule.step(coming[0], self._control, self.state, coming[1])

    @torch.compiler.disable  # type: ignore[untyped-decorator] # what the host decides anew each time
    def _prepare(self, *, notify: bool) -> tuple[StepPlan, Tensor | None] | None:
        """Everything of a step but the move of the parameters; ``None`` where none is to move."""
        if notify:
            self._begin_step()
        values = self._coming_values()
        self._follow_model()
        looked = self._look_at_gradients(self._parameters, self._dampings())
        if looked is None:
            return None
        self._refresh(values, looked.scale)
        plan = self._planner.plan(self.param_groups, looked.lots)
        plan.directions.renew()
        self._rule.overshoot.look_back(plan.curved, self.engine.steps - 1)
        self._share = self._rule.overshoot.share
        return plan.at(self._share), looked.found_inf

    def _defers(self, lots: Lots) -> bool:
        """Says so of plain steps on a device whose every parameter moves by fused kernels."""
        raises = self.engine.options.refresh.on_nonfinite == "raise"
        if self.wants_statistics or raises or self._join_config.enable or not self._can_defer:
            return False
        return self._planner.plan(self.param_groups, lots).can_defer

    def _refresh(self, values: list[dict[str, float]], scale: float = 1.0) -> None:
        """Takes in scheduled values and the statistics, of losses that were multiplied by scale."""
        self._scheduled.give(self.param_groups, values)
        self._taken_at = {id(group): group["lr"] for group in self.param_groups}
        self.engine.update(self._dampings(), scale)

    def _dampings(self) -> dict[nn.Parameter, float]:
        """λ of each parameter, in steps that need it."""
        if not self.engine.wants_statistics:
            return {}
        return {p: group["damping"] for group in self.param_groups for p in group["params"]}

    def replayed(self) -> None:
        """Counts a plain step that a CUDA graph has replayed, of which the host sees nothing.

        Steps that want statistics are taken by ``step()`` itself.

        Raises:
            InvalidOptionError: Where this step wants statistics.
        """
        self.engine.follow()
        allowed = "step() itself where optimizer.wants_statistics, replayed where it doesn't"
        require("step", "a replayed one", not self.engine.wants_statistics, allowed)
        self._refresh(self._coming_values())

    def shadow_step(self) -> None:
        """Takes part in a step of the other ranks, without samples.

        DistributedDataParallel keeps the others' gradients to itself and sends the weights at
        the end; with gradients of our own (``reduce_gradients``) the step is a full one.
        """
        values, engine = self._coming_values(), self.engine
        self.zero_grad()
        if engine.options.distributed.reduce_gradients:
            self._take_step(notify=False)
        elif engine.communicator.any(False):  # noqa: FBT003 (as the built-in)
            engine.discard()
        else:
            engine.follow()
            self._refresh(values)

    def catch_up(self, *, up_to_date: bool) -> None:
        """Takes over momentum and groups of a rank that took every step."""
        counted = self.engine.skips.state_dict() | self._rule.overshoot.state_dict()
        own, ranks = (super().state_dict(), counted), self.engine.communicator
        current, counted = ranks.adopt("state of the optimizer", own, valid=up_to_date)
        self._load(current, counted)

    def _load(self, state: dict[str, Any], counted: dict[str, Any]) -> None:
        """Takes over groups and states as torch has them, and what stands beside them."""
        super().load_state_dict(state)
        self.engine.skips.load_state_dict(counted)
        self._rule.overshoot.load_state_dict(counted)
        self._rule.adopt(self.state)
        self._scheduled.take_over()

    def allocate(self) -> None:
        """Makes room for momentum too, see ``HasCurvature.allocate``."""
        super().allocate()
        for group in self.param_groups:
            self._rule.allocate(group, self.engine.followed.layer_of, self.state)

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state plus ``"curvature"``: all that the next steps depend on."""
        counted = self.engine.skips.state_dict() | self._rule.overshoot.state_dict()
        return super().state_dict() | {"curvature": self.engine.state_dict() | counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Loading is the whole state: one that was saved before the first step clears the curvature.
        What was collected for a step that is still to come is dropped: load before the forward.
        What the curvature is must be the same: layers and their shapes, ``power``, eigenvalue
        correction, ``fisher``, ``weight_sharing``, ``norm_fisher``, ``loss_reduction``, and
        ``split`` where it is a number or ``None``; a measured split takes the checkpoint's cut.
        Groups and their values are the checkpoint's, as in torch. All else (intervals, trace
        rule, damping mode, norm control, order of the update, base rule) is this optimizer's.

        Raises:
            StateMismatchError: Where groups, shapes or these options differ; nothing is loaded
                then.
        """
        self._follow_model()
        given: object = state_dict
        curvature = given.get("curvature") if isinstance(given, dict) else None
        restored = self.engine.fitting(curvature)
        check_saved(self.param_groups, state_dict)
        said = [group[OWN] for group in self.param_groups]
        counted = state_dict["curvature"]
        self._load({k: v for k, v in state_dict.items() if k != "curvature"}, counted)
        for group, own in zip(self.param_groups, said, strict=True):
            group.setdefault(OWN, own)  # not in checkpoints of version 0.1
        self.engine.adopt(restored)
