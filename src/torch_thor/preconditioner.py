"""Natural-gradient preconditioning in front of any torch optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torch_thor.capture.selection import as_selectors
from torch_thor.curvature.engine import CurvatureEngine
from torch_thor.curvature.options import CurvatureOptions
from torch_thor.curvature.surface import HasCurvature
from torch_thor.directions.banded import GradientRows, gradient_of
from torch_thor.directions.controls import control_of
from torch_thor.directions.plan import DirectionPlan
from torch_thor.layers.shards import local
from torch_thor.options.checks import DAMPING, require_number
from torch_thor.options.curvature import (
    Damping,
    Intervals,
    MeasuredSplit,
    Refresh,
    Statistics,
    as_damping,
)
from torch_thor.options.distributed import Distributed
from torch_thor.options.errors import InvalidOptionError
from torch_thor.options.norm_control import (
    NormControl,
    NormControlKind,
    as_norm_control,
    check_norm_control,
)
from torch_thor.options.schedules import GrowingInterval, ScheduledFloat, value_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from torch_thor.capture.selection import Selector
    from torch_thor.options.trace_rule import TraceRule


class Preconditioner(HasCurvature):
    """Natural-gradient preconditioning in front of any torch optimizer.

    Call ``preconditioner.step()`` after ``backward()`` and before the optimizer's
    ``step()``: it rewrites the ``.grad`` of every preconditioned layer.

    Args:
        model: Model whose layers are preconditioned.
        damping: λ (relative to the mean eigenvalue), a schedule, or a ``Damping``.
        split: Block size of both factors; ``"auto"``, one size measured on this device;
            ``"per_layer"``, sizes of A and G for every shape of a layer, see ``layer_splits``;
            or ``None`` for whole factors.
        power: p of G^-p ∇W A^-p; 1 is the paper's, 1/2 the default.
        factor_interval: Steps between updates of the factors, a number or a schedule.
        inverse_interval: Steps between refreshes of the inverses; ``None`` follows
            ``factor_interval``.
        trace_rule: When a due layer is refreshed, kept or frozen; ``None`` always refreshes.
        norm_control: Length of each layer's direction, ``"graft"``, ``"rms"`` or
            ``"spectral"`` (or a ``NormControl`` of that kind), or ``None``.
        statistics: How factors are estimated.
        refresh: Staggering, type of the inverses, failure handling.
        exclude: Modules (names, with ``*`` as wildcard, or types) left alone.
        include: The same for types that are left alone unless asked for: embeddings, norms.
        eigenvalue_correction: EKFAC's eigenvalue-corrected basis.
        distributed: How the ranks of a data-parallel run share the curvature.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: ScheduledFloat | Damping = 3e-4,
        split: int | MeasuredSplit | None = 72,
        power: float = 0.5,
        factor_interval: ScheduledFloat = GrowingInterval(),
        inverse_interval: ScheduledFloat | None = None,
        trace_rule: TraceRule | None = None,
        norm_control: NormControl | NormControlKind | None = None,
        statistics: Statistics = Statistics(),
        refresh: Refresh = Refresh(),
        exclude: Selector | Iterable[Selector] = (),
        include: Selector | Iterable[Selector] = (),
        eigenvalue_correction: bool = False,
        distributed: Distributed = Distributed(),
    ) -> None:
        """Finds the layers and hangs the hooks."""
        said = as_norm_control(norm_control)
        self._control = control_of(said)
        if self._control.needs_rates:
            allowed = (
                "'graft', 'rms', 'spectral' or None: the KL clip needs a learning rate, so use THOR"
            )
            raise InvalidOptionError("norm_control", norm_control, allowed)
        inverses = factor_interval if inverse_interval is None else inverse_interval
        options = CurvatureOptions(
            damping=as_damping(damping),
            split=split,
            power=power,
            intervals=Intervals(factor_interval, inverses),
            trace_rule=trace_rule,
            statistics=statistics,
            refresh=refresh,
            exclude=as_selectors("exclude", exclude),
            include=as_selectors("include", include),
            eigenvalue_correction=eigenvalue_correction,
            distributed=distributed,
        )
        super().__init__(CurvatureEngine(model, options))
        self._known: tuple[object, tuple[DirectionPlan, list[nn.Parameter]]] | None = None
        check_norm_control(said, sharded=self.engine.followed.is_sharded)

    def step(self) -> None:
        """Updates the curvature and rewrites ``.grad`` of every preconditioned layer.

        Where a gradient is not finite, all stay as they are, and the statistics are dropped: what
        to do about such a step is the optimizer's, or a GradScaler's.

        Raises:
            NonFiniteGradientError: Where a gradient is not finite and ``on_nonfinite`` is
                ``"raise"``; nothing has changed then.
            InvalidOptionError: Where a schedule gives a value that no step can take; nothing has
                changed then.
        """
        self._begin_step()
        if self._take_in(self._begin()):
            with torch.no_grad():
                self._rewrite()

    def _begin(self) -> dict[nn.Parameter, float]:
        """Follows the model, and returns λ; nothing changes before all values are fine."""
        engine = self.engine
        engine.calendar.check(engine.steps + 1)
        engine.follow()
        damping = value_at(engine.options.damping.value, engine.steps, "damping")
        require_number(f"damping at step {engine.steps}", damping, DAMPING)
        return {layer.weight: damping for layer in engine.layers}

    def _take_in(self, dampings: dict[nn.Parameter, float]) -> bool:
        """Updates the curvature, unless a gradient is not finite; returns whether none is."""
        looked = self._look_at_gradients(self.engine.followed.parameters, dampings)
        if looked is not None:
            self.engine.update(dampings, gradient_scale=looked.scale)
        return looked is not None

    def shadow_step(self) -> None:
        """Takes part in a step of the other ranks, without samples."""
        engine = self.engine
        engine.model.zero_grad()
        dampings = self._begin()
        if engine.options.distributed.reduce_gradients:
            self._take_in(dampings)
        elif engine.communicator.any(False):  # noqa: FBT003 (as the built-in)
            engine.discard()
        else:
            engine.update(dampings)

    def catch_up(self, *, up_to_date: bool) -> None:
        """Does nothing: curvature is never behind."""

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on, keyed by layer name."""
        return self.engine.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Loading is the whole state: one that was saved before the first step clears the curvature.
        What was collected for a step that is still to come is dropped: load before the forward.
        What the curvature is must be the same: layers and their shapes, ``power``, eigenvalue
        correction, ``fisher``, ``weight_sharing``, ``norm_fisher``, ``loss_reduction``, and
        ``split`` where it is a number or ``None``; a measured split takes the checkpoint's cut.
        All else (intervals, trace rule, damping mode, norm control, types) is this one's.

        Raises:
            StateMismatchError: Where layers, shapes or these options differ; nothing is loaded
                then.
        """
        self.engine.adopt(self.engine.fitting(state_dict))

    def _plan(self) -> tuple[DirectionPlan, list[nn.Parameter]]:
        """The way of the gradients, and whose go together; found again where that has changed."""
        live = {p for layer in self.engine.layers for p in layer.parameters if p.grad is not None}
        now = (self.engine.store.changes, live)
        if self._known is None or self._known[0] != now:
            plan = DirectionPlan(self.engine.stacks, live.__contains__, self._control)
            together = list(filter(plan.goes_together, self.engine.followed.layer_of))
            self._known = (now, (plan, together))
        return self._known[1]

    def _rewrite(self) -> None:
        plan, parameters = self._plan()
        plan.renew()
        for large in plan.banded:
            large.run(GradientRows(), self._control)
        sources = {parameter: local(gradient_of(parameter)) for parameter in parameters}
        directions = plan.take(sources, rates={})
        for parameter, gradient in sources.items():
            gradient.copy_(directions[parameter])
