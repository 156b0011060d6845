"""The optimizer: one step of natural-gradient training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from torch_thor import norms
from torch_thor.capture import TrackedLayer
from torch_thor.coverage import Coverage
from torch_thor.errors import InvalidOptionError, NonFiniteGradientError, require
from torch_thor.options import Update
from torch_thor.policies import LayerDecision
from torch_thor.preconditioner import Preconditioner
from torch_thor.schedules import ScheduledFloat, value_at

ParameterGroup = dict[str, Any]
Parameters = Iterable[nn.Parameter] | Iterable[ParameterGroup]


@dataclass(frozen=True)
class Base:
    """First-order rule of every parameter outside the preconditioned layers.

    Args:
        rule: ``"sgd"`` or ``"adamw"``.
        lr_scale: Learning rate ÷ that of the group, so that schedulers move both.
        weight_decay: Decay of these parameters; ``None`` takes the group's.
        betas: AdamW's averages.
        eps: AdamW's ε.

    Raises:
        InvalidOptionError: For values out of range.
    """

    rule: Literal["sgd", "adamw"] = "sgd"
    lr_scale: float = 1.0
    weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Validates the options."""
        if self.rule not in ("sgd", "adamw"):
            raise InvalidOptionError("base rule", self.rule, "'sgd' or 'adamw'")
        require("lr_scale", self.lr_scale, self.lr_scale > 0, "> 0")


class CurvatureOptimizer(torch.optim.Optimizer):
    """Step engine that THOR, KFAC and EKFAC share.

    Args:
        preconditioner: The curvature engine over the model.
        params: Parameters or groups; ``None`` takes all of the model.
        lr: Learning rate, a number or a schedule over steps.
        momentum: Momentum factor, in [0, 1).
        weight_decay: Weight decay, >= 0.
        update: Order of preconditioning, momentum and decay.
        base: Rule of all other parameters.
        fused: Handed to torch's own SGD and AdamW kernels for the other parameters.
    """

    def __init__(
        self,
        preconditioner: Preconditioner,
        params: Parameters | None,
        *,
        lr: ScheduledFloat,
        momentum: float,
        weight_decay: float,
        update: Update,
        base: Base,
        fused: bool | None,
    ) -> None:
        """Builds the parameter groups."""
        require("lr", lr, callable(lr) or lr >= 0, ">= 0")
        require("momentum", momentum, 0 <= momentum < 1, "in [0, 1)")
        require("weight_decay", weight_decay, weight_decay >= 0, ">= 0")
        self.preconditioner = preconditioner
        self.update_order = update
        self.base = base
        self._fused = fused
        self._lr_schedule = lr if callable(lr) else None
        self._layer_of: dict[nn.Parameter, TrackedLayer] = {
            parameter: layer for layer in preconditioner.layers for parameter in layer.parameters
        }
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
        if not self._gradients_are_finite():
            self.preconditioner.discard()
            return loss
        self._follow_schedules()
        self.preconditioner.update()
        sources = self._sources()
        directions = self._directions(sources)
        for group in self.param_groups:
            self._step_layers(group, directions)
            self._step_base(group)
        return loss

    def _gradients_are_finite(self) -> bool:
        policy = self.preconditioner.refresh_options.on_nonfinite
        if policy == "ignore":
            return True
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return True
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
        finite = bool(largest.isfinite())
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
                layer = self._layer_of.get(parameter)
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
        stacks = self.preconditioner.stacks
        present = [
            [n for n, layer in enumerate(stack.layers) if layer.weight in sources]
            for stack in stacks
        ]
        used = [(stack, slots) for stack, slots in zip(stacks, present, strict=True) if slots]
        packed = [
            stack.pack(slots, [self._pair(stack.layers[slot], sources) for slot in slots])
            for stack, slots in used
        ]
        directions = [
            stack.direction(slots, matrices)
            for (stack, slots), matrices in zip(used, packed, strict=True)
        ]
        control = self.preconditioner.norm_control
        factors = norms.scales(control, directions, packed, self._learning_rates(used))
        result: dict[nn.Parameter, Tensor] = {}
        for number, (stack, slots) in enumerate(used):
            direction = directions[number]
            if factors is not None:
                direction = direction * factors[number].to(direction.dtype)[:, None, None, None]
            for slot, (weight, bias) in zip(slots, stack.unpack(slots, direction), strict=True):
                layer = stack.layers[slot]
                result[layer.weight] = weight.to(layer.weight.dtype)
                if layer.bias is not None and bias is not None:
                    result[layer.bias] = bias.to(layer.bias.dtype)
        return result

    def _learning_rates(self, used: list[tuple[Any, list[int]]]) -> list[Tensor]:
        rates = {p: group["lr"] for group in self.param_groups for p in group["params"]}
        return [
            torch.tensor([float(rates[stack.layers[slot].weight]) for slot in slots])
            for stack, slots in used
        ]

    def _pair(
        self, layer: TrackedLayer, sources: dict[nn.Parameter, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        if layer.bias is None:
            return sources[layer.weight], None
        bias = sources.get(layer.bias)
        return sources[layer.weight], torch.zeros_like(layer.bias) if bias is None else bias

    def _step_layers(
        self, group: ParameterGroup, directions: dict[nn.Parameter, Tensor]
    ) -> None:
        """Adds decay and momentum to the directions and moves the weights."""
        parameters = [p for p in self._with_gradient(group, layers=True) if p in directions]
        if not parameters:
            return
        order, lr, decay = self.update_order, float(group["lr"]), group["weight_decay"]
        steps = [directions[p] for p in parameters]
        if decay and order.decoupled_decay:
            torch._foreach_mul_(parameters, 1.0 - lr * decay)
        elif decay and order.momentum_first:
            steps = list(torch._foreach_add(steps, parameters, alpha=decay))
        if order.momentum_first:
            torch._foreach_add_(parameters, steps, alpha=-lr)
        else:
            coupled = 0.0 if order.decoupled_decay else decay
            self._sgd(group, parameters, steps, weight_decay=coupled, lr=lr)

    def _step_base(self, group: ParameterGroup) -> None:
        """Steps every other parameter by the base rule, with torch's own kernels."""
        parameters = self._with_gradient(group, layers=False)
        if not parameters:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        base = self.base
        lr = group["lr"] * base.lr_scale
        decay = group["weight_decay"] if base.weight_decay is None else base.weight_decay
        if base.rule == "sgd":
            self._sgd(group, parameters, gradients, weight_decay=decay, lr=lr)
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            gradients,
            [entry["exp_avg"] for entry in states],
            [entry["exp_avg_sq"] for entry in states],
            [],
            [entry["step"] for entry in states],
            fused=self._fused,
            amsgrad=False,
            beta1=base.betas[0],
            beta2=base.betas[1],
            lr=lr,
            weight_decay=decay,
            eps=base.eps,
            maximize=False,
        )

    def _sgd(
        self,
        group: ParameterGroup,
        parameters: list[nn.Parameter],
        steps: list[Tensor],
        *,
        weight_decay: float,
        lr: float,
    ) -> None:
        """torch.optim.SGD's own update over given directions."""
        momentum = group["momentum"]
        buffers = [self.state[p].get("momentum_buffer") for p in parameters]
        sgd(
            parameters,
            steps,
            buffers,
            fused=self._fused,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.update_order.nesterov and momentum > 0,
            maximize=False,
        )
        if momentum:
            for parameter, buffer in zip(parameters, buffers, strict=True):
                self.state[parameter]["momentum_buffer"] = buffer

    def _momentum_buffers(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[p]["momentum_buffer"] for p in parameters]

    def _with_gradient(self, group: ParameterGroup, *, layers: bool) -> list[nn.Parameter]:
        """Parameters of a group that have a gradient, inside or outside tracked layers."""
        return [
            p for p in group["params"] if p.grad is not None and (p in self._layer_of) is layers
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
        curvature = state_dict.get("curvature")
        self.preconditioner.prepare(curvature)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "curvature"})
        self.preconditioner.load_state_dict(curvature)
