"""The optimizer: one step of natural-gradient training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from torch_thor.coverage import sparse_parameters
from torch_thor.directions import all_finite
from torch_thor.distributed import Distributed, UnevenInputs
from torch_thor.distributed.description import describe
from torch_thor.errors import InvalidOptionError, NonFiniteGradientError, require
from torch_thor.motion import Motion
from torch_thor.options import (
    NormControl,
    NormControlKind,
    as_norm_control,
    check_norm_control,
)
from torch_thor.routes import ParameterGroup, Router
from torch_thor.scaling import calling_scaler
from torch_thor.schedules import ScheduledFloat, value_at
from torch_thor.shards import local
from torch_thor.snapshot import are_same

if TYPE_CHECKING:
    from torch_thor.base import Base
    from torch_thor.coverage import Coverage
    from torch_thor.fisher import Likelihood
    from torch_thor.options import Update
    from torch_thor.policies import LayerDecision
    from torch_thor.preconditioner import Preconditioner
    from torch_thor.routes import GroupPlan

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
        base: Base,
    ) -> None:
        """Builds the parameter groups."""
        require("lr", lr, callable(lr) or lr >= 0, ">= 0")
        require("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        require("weight_decay", weight_decay, weight_decay >= 0, ">= 0")
        self.preconditioner = preconditioner
        self.norm_control = as_norm_control(norm_control)
        self._motion = Motion(update, base)
        self._router = Router(self.norm_control)
        self._lr_schedule = lr if callable(lr) else None
        defaults = {
            "lr": value_at(lr, 0),
            "momentum": momentum,
            "weight_decay": weight_decay,
            "damping": value_at(preconditioner.options.damping.value, 0),
        }
        self._scaler: torch.amp.GradScaler | None = None
        self._is_built = False
        self._parameters: list[nn.Parameter] = []
        chosen = preconditioner.model.parameters() if params is None else params
        super().__init__(chosen, defaults)
        self._is_built = True
        self._serve()
        UnevenInputs.__init__(self)
        check_norm_control(self.norm_control, sharded=preconditioner.is_sharded)
        self._agree()

    def _agree(self) -> None:
        """Raises unless all ranks of a distributed run have the same options and groups."""
        groups = [
            {k: len(v) if k == "params" else v for k, v in g.items()} for g in self.param_groups
        ]
        options = (type(self), self._lr_schedule, self.norm_control, self._motion)
        ranks = self.preconditioner.communicator
        ranks.agree("options of the optimizer", describe([*options, groups]))

    @property
    def last_decisions(self) -> tuple[LayerDecision, ...]:
        """Decisions of the latest ``step()``; empty when it refreshed nothing."""
        return self.preconditioner.last_decisions

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

    def use_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tells the optimizer of a GradScaler that doesn't call its ``step()``.

        Captured output gradients are scaled. A scaler whose ``scaler.step(optimizer)`` takes the
        step is found by itself; where the step is called otherwise, its scale would enter G.
        """
        self._scaler = scaler

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

        Raises:
            InvalidOptionError: For a parameter whose gradients are sparse.
        """
        super().add_param_group(param_group)
        sparse = sparse_parameters(self.preconditioner.model)
        for parameter in self.param_groups[-1]["params"]:
            if parameter in sparse:
                allowed = (
                    "dense: build the embedding with sparse=False, or leave it to an "
                    "optimizer of its own (torch.optim.SparseAdam)"
                )
                raise InvalidOptionError("gradient of", sparse[parameter], allowed)
        if self._is_built:
            self._serve()

    def _serve(self) -> None:
        """Keeps the curvature to the layers whose weight is in a group now."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not are_same(parameters, self._parameters):
            self._parameters = parameters
            self._router.forget()
            self.preconditioner.serve(parameters)

    def remove(self) -> None:
        """Takes every hook off the model."""
        self.preconditioner.remove()

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
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._begin_step()
        self._take_step()
        return loss

    def _take_step(self) -> None:
        engine = self.preconditioner
        self._serve()
        engine.follow()
        finite = self._are_finite(self._gradients())
        self._tell_joined(engine.communicator, skipped=not finite)
        scale = self._scale_in_force()
        if not finite:
            if engine.is_sharded:
                # The other ranks, whose shards may be finite, count on this one.
                engine.update(scale)
            self._skip()
            return
        self._follow_schedules(self._plans())
        engine.update(scale)
        route = self._router.route(self._plans(), engine.stacks)
        self._motion.step(route, self.norm_control, self.state)

    def _gradients(self) -> list[Tensor]:
        """All gradients, averaged over ranks where the user asked for that."""
        self.preconditioner.communicator.average_gradients(self._parameters)
        return [local(p.grad) for p in self._parameters if p.grad is not None]

    def _skip(self) -> None:
        """Leaves a step out."""
        self.preconditioner.discard()
        if self.preconditioner.options.refresh.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"A gradient holds NaN or Inf at step {self.preconditioner.steps}; nothing was "
                "changed. Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )

    def _plans(self) -> list[GroupPlan]:
        engine = self.preconditioner
        return self._router.plans(
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

    def _are_finite(self, gradients: list[Tensor]) -> bool:
        ignored = self.preconditioner.options.refresh.on_nonfinite == "ignore"
        return ignored or not gradients or all_finite(gradients)

    def _follow_schedules(self, plans: list[GroupPlan]) -> None:
        """Writes scheduled values into the groups, and the groups' damping to the layers."""
        step = self.preconditioner.steps
        damping = self.preconditioner.options.damping.value
        for plan in plans:
            group = plan.group
            if self._lr_schedule is not None:
                group["lr"] = value_at(self._lr_schedule, step)
            if callable(damping):
                group["damping"] = value_at(damping, step)
            for layer in plan.layers:
                layer.damping = group["damping"]

    def shadow_step(self) -> None:
        """Takes part in a step of the other ranks, without samples.

        DistributedDataParallel keeps the others' gradients to itself and sends the weights at
        the end; with gradients of our own (``reduce_gradients``) the step is a full one.
        """
        self.zero_grad()
        if self.preconditioner.options.distributed.reduce_gradients:
            self._take_step()
        elif self.preconditioner.communicator.any(False):  # noqa: FBT003 (as the built-in)
            self.preconditioner.discard()
        else:
            self._follow_schedules(self._plans())
            self.preconditioner.update()

    def catch_up(self, *, up_to_date: bool) -> None:
        """Takes over momentum and groups of a rank that took every step."""
        own = super().state_dict()
        ranks = self.preconditioner.communicator
        current = ranks.adopt("state of the optimizer", own, valid=up_to_date)
        super().load_state_dict(current)
        self._motion.adopt(self.state)

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
            self._motion.allocate(group, curved, self.state)

    def state_dict(self) -> dict[str, Any]:
        """Returns torch's state plus ``"curvature"``: all that the next steps depend on."""
        result = super().state_dict()
        result["curvature"] = self.preconditioner.state_dict()
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Raises:
            StateMismatchError: Where model or options differ; nothing is loaded then.
        """
        curvature = state_dict.get("curvature", {})
        self.preconditioner.prepare(curvature)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "curvature"})
        self._motion.adopt(self.state)
        self.preconditioner.load_state_dict(curvature)
