"""The optimizer: one step of natural-gradient training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from torch_thor import norms
from torch_thor.base import Base, adamw_step, sgd_step
from torch_thor.errors import NonFiniteGradientError, require
from torch_thor.options import NormControl, NormControlKind, Update, as_norm_control
from torch_thor.schedules import ScheduledFloat, value_at

if TYPE_CHECKING:
    from torch_thor.capture import TrackedLayer
    from torch_thor.coverage import Coverage
    from torch_thor.policies import LayerDecision
    from torch_thor.preconditioner import Preconditioner

ParameterGroup = dict[str, Any]
Parameters = Iterable[nn.Parameter] | Iterable[ParameterGroup]


class CurvatureOptimizer(torch.optim.Optimizer):
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

    _step_supports_amp_scaling = True

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
        self.update_order = update
        self.base = base
        self._lr_schedule = lr if callable(lr) else None
        defaults = {
            "lr": value_at(lr, 0),
            "momentum": momentum,
            "weight_decay": weight_decay,
            "damping": value_at(preconditioner.damping.value, 0),
        }
        chosen = preconditioner.model.parameters() if params is None else params
        super().__init__(chosen, defaults)

    @property
    def last_decisions(self) -> tuple[LayerDecision, ...]:
        """Decisions of the latest ``step()``; empty when it refreshed nothing."""
        return self.preconditioner.last_decisions

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        return self.preconditioner.coverage()

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
        scale = self._unscale()
        if scale is None or not self._gradients_are_finite():
            self.preconditioner.discard()
            return loss
        self._follow_schedules()
        self.preconditioner.update(scale)
        sources = self._sources()
        directions = self._directions(sources)
        for group in self.param_groups:
            self._step_layers(group, directions)
            self._step_base(group)
        return loss

    def _unscale(self) -> float | None:
        """Divides a GradScaler's scale out of the gradients and returns it.

        ``None`` says that the scaler found an infinite gradient. A scaler hands over its
        findings because ``_step_supports_amp_scaling`` is set.
        """
        found: Tensor | None = getattr(self, "found_inf", None)
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if found is not None and bool(found):
            return None
        if scale is None:
            return 1.0
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        torch._foreach_div_(gradients, scale)
        return float(scale)

    def _gradients_are_finite(self) -> bool:
        policy = self.preconditioner.refresh_options.on_nonfinite
        if policy == "ignore":
            return True
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return True
        # The Euclidean norm is vectorized where the largest entry is not.
        finite = bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        if not finite and policy == "raise":
            self.preconditioner.discard()
            raise NonFiniteGradientError(
                f"A gradient holds NaN or Inf at step {self.preconditioner.steps}; nothing was "
                "changed. Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )
        return finite

    def _follow_schedules(self) -> None:
        """Writes scheduled values into the groups, and the groups' damping to the layers."""
        step = self.preconditioner.steps
        damping = self.preconditioner.damping.value
        for group in self.param_groups:
            if self._lr_schedule is not None:
                group["lr"] = value_at(self._lr_schedule, step)
            if callable(damping):
                group["damping"] = value_at(damping, step)
            for parameter in group["params"]:
                layer = self.preconditioner.layer_of.get(parameter)
                if layer is not None and parameter is layer.weight:
                    layer.damping = group["damping"]

    def _sources(self) -> dict[nn.Parameter, Tensor]:
        """What is preconditioned: gradients, or their momentum."""
        sources: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            parameters = self._with_gradient(group, layers=True)
            gradients = [p.grad for p in parameters if p.grad is not None]
            momentum = group["momentum"]
            if gradients and self.update_order.momentum_first and momentum:
                buffers = self._momentum_buffers(parameters)
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, gradients)
                if self.update_order.nesterov:
                    gradients = list(torch._foreach_add(gradients, buffers, alpha=momentum))
                else:
                    gradients = buffers
            sources.update(zip(parameters, gradients, strict=True))
        return sources

    def _directions(self, sources: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Preconditions the sources, stack by stack, and sets the length of each layer's."""
        control = self.norm_control
        clipped = control is not None and control.kind == "kl_clip"
        directions: dict[nn.Parameter, Tensor] = {}
        inner: list[Tensor] = []
        for stack in self.preconditioner.stacks:
            slots = [n for n, layer in enumerate(stack.layers) if layer.weight in sources]
            if not slots:
                continue
            layers = [stack.layers[slot] for slot in slots]
            source = stack.pack([self._pair(layer, sources) for layer in layers])
            direction = stack.direction(slots, source)
            if control is not None:
                norms.set_lengths(control, direction, source)
            if clipped:
                inner.append(norms.inner_product(direction, source, self._rates(layers)))
            for layer, (weight, bias) in zip(layers, stack.unpack(slots, direction), strict=True):
                directions[layer.weight] = weight
                if layer.bias is not None and bias is not None:
                    directions[layer.bias] = bias
        if control is not None and inner:
            clip = norms.kl_clip(control.limit, torch.stack(inner).sum())
            torch._foreach_mul_(list(directions.values()), clip)
        return directions

    def _rates(self, layers: list[TrackedLayer]) -> list[float]:
        rates = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        return [rates[layer.weight] for layer in layers]

    def _pair(
        self, layer: TrackedLayer, sources: dict[nn.Parameter, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return sources[layer.weight], None if layer.bias is None else sources.get(layer.bias)

    def _step_layers(self, group: ParameterGroup, directions: dict[nn.Parameter, Tensor]) -> None:
        """Adds decay and momentum to the directions and moves the weights."""
        parameters = [p for p in self._with_gradient(group, layers=True) if p in directions]
        if not parameters:
            return
        weights: list[Tensor] = [*parameters]
        order, lr, decay = self.update_order, float(group["lr"]), group["weight_decay"]
        steps = [directions[p] for p in parameters]
        if decay and (order.decoupled_decay or order.momentum_first):
            # Without momentum after it, decay added to the direction is decay of the weight.
            torch._foreach_mul_(weights, 1.0 - lr * decay)
        if order.momentum_first:
            torch._foreach_add_(weights, steps, alpha=-lr)
        else:
            coupled = 0.0 if order.decoupled_decay else decay
            self._sgd(group, parameters, steps, lr=lr, weight_decay=coupled)

    def _step_base(self, group: ParameterGroup) -> None:
        """Steps every other parameter by the base rule."""
        parameters = self._with_gradient(group, layers=False)
        if not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        base = self.base
        lr = group["lr"] * base.lr_scale
        decay = group["weight_decay"] if base.weight_decay is None else base.weight_decay
        states = [self.state[p] for p in parameters]
        if base.rule == "adamw":
            adamw_step(base, parameters, gradients, states, lr=lr, weight_decay=decay)
        else:
            self._sgd(group, parameters, gradients, lr=lr, weight_decay=decay)

    def _sgd(
        self,
        group: ParameterGroup,
        parameters: list[nn.Parameter],
        steps: list[Tensor],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        sgd_step(
            parameters,
            steps,
            [self.state[p] for p in parameters],
            lr=lr,
            weight_decay=weight_decay,
            momentum=group["momentum"],
            nesterov=self.update_order.nesterov,
            fused=self.base.fused,
        )

    def _momentum_buffers(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[p]["momentum_buffer"] for p in parameters]

    def _with_gradient(self, group: ParameterGroup, *, layers: bool) -> list[nn.Parameter]:
        """Parameters of a group that have a gradient, inside or outside tracked layers."""
        return [
            p
            for p in group["params"]
            if p.grad is not None and (p in self.preconditioner.layer_of) is layers
        ]

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
        self.preconditioner.load_state_dict(curvature)
