"""The optimizer: one step of natural-gradient training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, overload

import torch
from torch import Tensor, nn

from torch_thor.capture.coverage import sparse_parameters
from torch_thor.capture.scaling import calling_scaler
from torch_thor.capture.snapshot import are_same
from torch_thor.directions.plan import all_finite
from torch_thor.distributed.description import describe
from torch_thor.distributed.joining import UnevenInputs
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import Lots, Sorter
from torch_thor.options.checks import require_number, require_type
from torch_thor.options.errors import InvalidOptionError, NonFiniteGradientError, require
from torch_thor.options.norm_control import (
    NormControl,
    NormControlKind,
    as_norm_control,
    check_norm_control,
)
from torch_thor.options.notices import warn
from torch_thor.options.schedules import ScheduledFloat, value_at
from torch_thor.options.update import Base, BaseRule, Update, as_base
from torch_thor.update.groups import (
    OWN,
    RANGES,
    ParameterGroup,
    as_groups,
    check_saved,
    complete,
    values_at,
)
from torch_thor.update.plan import Planner
from torch_thor.update.rule import UpdateRule
from torch_thor.update.skips import SkippedSteps, describe_nonfinite

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch_thor.capture.coverage import Coverage
    from torch_thor.capture.fisher import Likelihood
    from torch_thor.capture.selection import Selector
    from torch_thor.curvature.memory import MemoryReport
    from torch_thor.options.distributed import Distributed
    from torch_thor.options.trace_rule import LayerDecision
    from torch_thor.preconditioner import Preconditioner
    from torch_thor.update.plan import GroupPlan

Parameters = Iterable[nn.Parameter] | Iterable[ParameterGroup]


class CurvatureOptimizer(torch.optim.Optimizer, UnevenInputs):
    """Step engine that THOR, KFAC and EKFAC share.

    Args:
        preconditioner: The curvature engine over the model.
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
        preconditioner: Preconditioner,
        params: Parameters | None,
        *,
        lr: ScheduledFloat,
        momentum: float,
        weight_decay: float,
        norm_control: NormControl | NormControlKind | None,
        update: Update,
        base: Base | BaseRule,
    ) -> None:
        """Builds the parameter groups."""
        try:
            self._check(lr=lr, momentum=momentum, weight_decay=weight_decay, update=update)
            self.preconditioner = preconditioner
            self.norm_control = as_norm_control(norm_control)
            self._rule = UpdateRule(update, as_base(base))
            self._planner = Planner(self.norm_control)
            self._sorter = Sorter()
            self._skips = SkippedSteps()
            damping = preconditioner.options.damping.value
            scheduled = {"lr": lr, "damping": damping}
            self._schedules = {name: value for name, value in scheduled.items() if callable(value)}
            defaults = {
                "lr": value_at(lr, 0, "lr"),
                "momentum": momentum,
                "weight_decay": weight_decay,
                "damping": value_at(damping, 0, "damping"),
            }
            self._scaler: torch.amp.GradScaler | None = None
            self._is_built = False
            self._parameters: list[nn.Parameter] = []
            chosen = preconditioner.model.parameters() if params is None else params
            super().__init__(as_groups(chosen), defaults)
            self._look_for_foreign(self.param_groups)
            self._is_built = True
            self._serve()
            UnevenInputs.__init__(self)
            check_norm_control(self.norm_control, sharded=preconditioner.is_sharded)
            self._agree()
            preconditioner.room.require(preconditioner.layers)
        except Exception:
            preconditioner.remove()  # what was refused leaves no hooks
            raise

    @staticmethod
    def _check(*, lr: object, momentum: object, weight_decay: object, update: object) -> None:
        require_type("lr", lr, ScheduledFloat)
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        for name, value in given.items():
            if name != "lr" or not callable(value):
                require_number(name, value, RANGES[name])
        require_type("update", update, Update)

    def _look_for_foreign(self, groups: list[ParameterGroup]) -> None:
        """Says which parameters of some groups the model does not have.

        Raises:
            InvalidOptionError: Where it has none at all: of another model, or replaced since.
        """
        own = set(self.preconditioner.model.parameters())
        given = [p for group in groups for p in group["params"]]
        foreign = sum(p not in own for p in given)
        if foreign and foreign == len(given) and not self._is_built:
            raise InvalidOptionError(
                "params",
                f"{foreign} parameters that the model does not have",
                "parameters of the model: pass the model that holds them, or no params at all",
            )
        if foreign:
            warn(
                f"{foreign} of {len(given)} parameters in the groups are not the model's: they "
                "train by the base rule, without curvature. Pass the model that holds them, if "
                "that is not what you want."
            )

    def _agree(self) -> None:
        """Raises unless all ranks of a distributed run have the same options and groups."""
        groups = [
            {k: len(v) if k == "params" else v for k, v in g.items()} for g in self.param_groups
        ]
        options = (type(self), self._schedules, self.norm_control, self._rule)
        ranks = self.preconditioner.communicator
        ranks.agree("options of the optimizer", describe([*options, groups]))

    @property
    def last_decisions(self) -> tuple[LayerDecision, ...]:
        """Decisions of the latest ``step()``; empty when it refreshed nothing."""
        return self.preconditioner.last_decisions

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because a gradient was not finite; a scaler's don't count.

        With sharded weights each rank counts its own rows' steps.
        """
        return self._skips.total

    @torch.no_grad()
    def factor_norms(self) -> dict[str, float]:
        """Returns ‖A ⊗ G‖ (Frobenius, undamped) of the curvature of each layer, by name.

        Only the blocks that the split keeps count. Empty before the first statistics.
        """
        norms_of: dict[str, float] = {}
        for stack in self.preconditioner.stacks:
            squares = [
                factor.blocks.double().square().sum((2, 3, 4)) for factor in (stack.a, stack.g)
            ]
            lengths = (squares[0] * squares[1]).sum(1).sqrt().tolist()
            norms_of.update((lay.name, n) for lay, n in zip(stack.layers, lengths, strict=True))
        return norms_of

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        self._serve()
        return self.preconditioner.coverage()

    def memory(self) -> MemoryReport:
        """Says what curvature and momentum take, before the first step as after it.

        Raises:
            InvalidOptionError: Where the split is measured, before the first statistics.
        """
        curved = self.preconditioner.layer_of
        state = sum(self._rule.state_bytes(group, curved) for group in self.param_groups)
        return replace(self.preconditioner.memory(), state=state)

    def use_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tells the optimizer of a GradScaler that doesn't call its ``step()``.

        Captured output gradients are scaled. A scaler whose ``scaler.step(optimizer)`` takes the
        step is found by itself; where the step is called otherwise, its scale would enter G.
        """
        self._scaler = scaler

    def use_mask(self, counts: Tensor) -> None:
        """Leaves padding out of the statistics; see ``Preconditioner.use_mask``."""
        self.preconditioner.use_mask(counts)

    @property
    def wants_statistics(self) -> bool:
        """Whether the next ``step()`` needs statistics of any layer."""
        return self.preconditioner.wants_statistics

    def sample_fisher(
        self,
        outputs: Tensor,
        likelihood: Likelihood = "categorical",
        *,
        class_dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Collects statistics of sampled labels; see ``Preconditioner.sample_fisher``."""
        self.preconditioner.sample_fisher(
            outputs, likelihood, class_dim=class_dim, generator=generator
        )

    def fisher_backward(self, loss: Tensor) -> None:
        """Runs a backward for the statistics alone; see ``Preconditioner.fisher_backward``."""
        self.preconditioner.fisher_backward(loss)

    def add_param_group(self, param_group: ParameterGroup) -> None:
        """Adds a group, as any torch optimizer does.

        What the group says for itself it keeps: a schedule of ``lr`` or ``damping`` serves the
        others, and its own ``weight_decay`` holds for the base rule too.

        Raises:
            InvalidOptionError: For a value that no step could take, or a parameter whose
                gradients are sparse; nothing is added then.
        """
        parameters = complete(param_group, len(self.param_groups), self.defaults)
        sparse = sparse_parameters(self.preconditioner.model)
        for parameter in parameters:
            if parameter in sparse:
                allowed = (
                    "dense: build the embedding with sparse=False, or leave it to an "
                    "optimizer of its own (torch.optim.SparseAdam)"
                )
                raise InvalidOptionError("gradient of", sparse[parameter], allowed)
        super().add_param_group(param_group)
        if self._is_built:
            self._look_for_foreign(self.param_groups[-1:])
            self._serve()

    def _serve(self) -> None:
        """Keeps the curvature to the layers whose weight is in a group now."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not are_same(parameters, self._parameters):
            self._parameters = parameters
            self._planner.forget()
            self.preconditioner.serve(parameters)

    def remove(self) -> None:
        """Takes every hook off the model."""
        self.preconditioner.remove()

    def without_hooks(self) -> AbstractContextManager[None]:
        """Inside, the model has no hooks: for tools that can't pass them, as torch.jit.script."""
        return self.preconditioner.without_hooks()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the optimizer with its model: ``copy.deepcopy((model, optimizer))``."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        # A scheduler puts a method of its own in front, which would step the original.
        own = {name: it for name, it in vars(self).items() if not hasattr(type(self), name)}
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in own.items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to be pickled.

        Raises:
            TypeError: Always.
        """
        kind = type(self).__name__
        raise TypeError(
            f"{kind} holds hooks of its model and can't be pickled: save optimizer.state_dict(), "
            "build model and optimizer anew, and load it there."
        )

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
        self._begin_step()
        self._take_step()
        return loss

    def _take_step(self) -> None:
        values = self._scheduled()
        engine = self.preconditioner
        self._serve()
        engine.follow()
        gradients = self._gradients()
        lots = self._sorter.sort(gradients)
        finite = self._are_finite(gradients, lots)
        self._tell_joined(engine.communicator, skipped=not finite)
        scale = self._scale_in_force()
        if not finite:
            if engine.is_sharded:
                # The other ranks, whose shards may be finite, count on this one.
                engine.update(scale)
            self._skip()
            return
        self._skips.in_a_row = 0
        self._follow(self._plans(), values)
        engine.update(scale)
        plan = self._planner.plan(self._plans(), engine.stacks, lots)
        self._rule.step(plan, self.norm_control, self.state)

    def _gradients(self) -> list[Tensor]:
        """All gradients, averaged over ranks where the user asked for that."""
        self.preconditioner.communicator.average_gradients(self._parameters)
        return [local(p.grad) for p in self._parameters if p.grad is not None]

    def _skip(self) -> None:
        """Leaves a step out."""
        engine = self.preconditioner
        engine.discard()
        if engine.options.refresh.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"At step {engine.steps} {describe_nonfinite(engine.model)}; nothing was changed. "
                "Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )
        self._skips.count(engine.steps, engine.model)

    def _plans(self) -> list[GroupPlan]:
        engine = self.preconditioner
        return self._planner.plans(
            self.param_groups, engine.surveys, engine.layer_of, engine.curved_by
        )

    def _scale_in_force(self) -> float:
        """What the losses behind the captured gradients were multiplied by."""
        if not self.preconditioner.wants_statistics:
            return 1.0
        scaler = self._scaler or calling_scaler()
        if scaler is None or not scaler.is_enabled():
            return 1.0
        ours = self.preconditioner.options.distributed.reduce_gradients
        allowed = "False with a GradScaler, whose scale is the rank's own: wrap the model in DDP"
        require("reduce_gradients", ours, not ours, allowed)
        return float(scaler.get_scale())

    def _are_finite(self, gradients: list[Tensor], lots: Lots) -> bool:
        ignored = self.preconditioner.options.refresh.on_nonfinite == "ignore"
        return ignored or not gradients or all_finite(gradients, lots)

    def _scheduled(self) -> list[dict[str, float]]:
        """What schedules give to the groups in this step; checked before anything changes."""
        self.preconditioner.check_schedules()
        return values_at(self.param_groups, self._schedules, self.preconditioner.steps)

    def _follow(self, plans: list[GroupPlan], values: list[dict[str, float]]) -> None:
        """Writes scheduled values into the groups, and the groups' damping to the layers."""
        for plan, given in zip(plans, values, strict=True):
            plan.group.update(given)
            for layer in plan.layers:
                layer.damping = plan.group["damping"]

    def shadow_step(self) -> None:
        """Takes part in a step of the other ranks, without samples.

        DistributedDataParallel keeps the others' gradients to itself and sends the weights at
        the end; with gradients of our own (``reduce_gradients``) the step is a full one.
        """
        values = self._scheduled()
        self.zero_grad()
        if self.preconditioner.options.distributed.reduce_gradients:
            self._take_step()
        elif self.preconditioner.communicator.any(False):  # noqa: FBT003 (as the built-in)
            self.preconditioner.discard()
        else:
            self.preconditioner.follow()
            self._follow(self._plans(), values)
            self.preconditioner.update()

    def catch_up(self, *, up_to_date: bool) -> None:
        """Takes over momentum and groups of a rank that took every step."""
        own = (super().state_dict(), self._skips.total)
        ranks = self.preconditioner.communicator
        current, self._skips.total = ranks.adopt("state of the optimizer", own, valid=up_to_date)
        super().load_state_dict(current)
        self._rule.adopt(self.state)

    @property
    def _distribution(self) -> tuple[Distributed, torch.device]:
        return self.preconditioner._distribution

    def allocate(self) -> None:
        """Makes room for all state now, so that a distributed checkpoint can be loaded into it.

        ``torch.distributed.checkpoint`` loads into the tensors of a ``state_dict()``; a new
        optimizer has none before its first step.
        """
        self.preconditioner.allocate()
        curved = self.preconditioner.layer_of
        for group in self.param_groups:
            self._rule.allocate(group, curved, self.state)

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state plus ``"curvature"``: all that the next steps depend on."""
        result = super().state_dict()
        skipped = {"skipped_steps": self._skips.total}
        result["curvature"] = self.preconditioner.state_dict() | skipped
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Loading is the whole state: one that was saved before the first step clears the curvature.
        What the curvature is must be the same: layers and their shapes, ``power``, eigenvalue
        correction, ``fisher``, ``weight_sharing``, ``norm_fisher``, ``loss_reduction``, and
        ``split`` where it is a number or ``None``; a measured split takes the checkpoint's cut.
        Groups and their values are the checkpoint's, as in torch. All else (intervals, trace
        rule, damping mode, norm control, order of the update, base rule) is this optimizer's.

        Raises:
            StateMismatchError: Where groups, shapes or these options differ; nothing is loaded
                then.
        """
        self._serve()
        given: object = state_dict
        curvature = given.get("curvature") if isinstance(given, dict) else None
        restored = self.preconditioner.fitting(curvature)
        check_saved(self.param_groups, state_dict)
        said = [group[OWN] for group in self.param_groups]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "curvature"})
        self._rule.adopt(self.state)
        for group, own in zip(self.param_groups, said, strict=True):
            group.setdefault(OWN, own)  # not in checkpoints of version 0.1
        self.preconditioner.adopt(restored)
        # Not in checkpoints of version 0.1.
        self._skips = SkippedSteps(state_dict["curvature"].get("skipped_steps", 0))

    def load_curvature(
        self, state: dict[str, Any], leave_out: Selector | Iterable[Selector] = ()
    ) -> None:
        """Loads the curvature of all layers but some; see ``Preconditioner.load_curvature``."""
        self._serve()
        self.preconditioner.load_curvature(state, leave_out)

    def reset_curvature(self) -> None:
        """Forgets the curvature, not the momentum; see ``Preconditioner.reset_curvature``."""
        self.preconditioner.reset_curvature()
