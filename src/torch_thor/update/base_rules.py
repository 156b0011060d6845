"""First-order rules of every parameter outside the tracked layers, a class each.

State is laid out as torch's own optimizers do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import ALL, Lots, is_asynchronous
from torch_thor.options.errors import require
from torch_thor.update.fused import kept_alike, laid_like, step_fused
from torch_thor.update.groups import says
from torch_thor.update.momentum import ParameterState, States, momentum_buffers, step_with_momentum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options.update import Base, BaseRule, Update
    from torch_thor.update.groups import ParameterGroup

_STEP_BYTES = 4  # of a parameter's count of steps


@dataclass(frozen=True)
class Plain:
    """Parameters without curvature that are treated alike."""

    parameters: list[nn.Parameter]
    steps: list[Tensor]  # this rank's part of the gradients
    states: list[ParameterState]
    together: bool  # whether one call takes them all
    found_inf: Tensor | None = None  # one where nothing is to move, if only the device knows

    @cached_property
    def weights(self) -> list[Tensor]:
        """This rank's part of the parameters."""
        return [local(parameter) for parameter in self.parameters]


class FirstOrder(ABC):
    """How parameters without curvature move.

    Args:
        options: What the user said.
        order: Order of the update, for what it says of momentum.
    """

    knows_found_inf: ClassVar[bool] = False  # whether it can leave a step out on the device

    def __init__(self, options: Base, order: Update) -> None:
        self._options, self._nesterov = options, order.nesterov

    @property
    def takes_found_inf(self) -> bool:
        """Whether it leaves a step out on the device alone, which fused kernels do."""
        return self.knows_found_inf and self._options.fused is not False

    @abstractmethod
    def allocate(self, parameter: nn.Parameter, state: ParameterState, momentum: float) -> None:
        """Gives a parameter the state that its first step would."""

    @abstractmethod
    def state_bytes(self, parameter: nn.Parameter, momentum: float) -> int:
        """Bytes of that state."""

    @abstractmethod
    def adopt(self, states: States) -> None:
        """Takes over a loaded state, which may come from another device or kernel."""

    def step(
        self,
        group: ParameterGroup,
        parameters: Sequence[nn.Parameter],
        states: States,
        lots: Lots,
        found_inf: Tensor | None = None,
    ) -> None:
        """Moves parameters of a group, of which some go together, along their gradients."""
        said = self._options
        decay = said.weight_decay
        if decay is None or says(group, "weight_decay"):
            decay = float(group["weight_decay"])
        lr, momentum = group["lr"] * said.lr_scale, group["momentum"]
        state = [states[parameter] for parameter in parameters]
        steps = [local(gradient_of(parameter)) for parameter in parameters]
        for lot in lots:
            mine = lot.take(parameters), lot.take(steps), lot.take(state)
            own = Plain(*mine, lot.together, found_inf)
            self._move(own, lr, decay, momentum)

    @abstractmethod
    def _move(self, own: Plain, lr: float, weight_decay: float, momentum: float) -> None:
        """Moves parameters of one lot."""


class SGD(FirstOrder):
    """torch.optim.SGD's arithmetic, to the bit, but without writing to the gradients.

    All tensors that go together move at once: on the CPU torch's own goes through them one by one,
    and its multi-tensor kernel leaves Nesterov's sum in the gradients.
    """

    knows_found_inf = True

    def allocate(self, parameter: nn.Parameter, state: ParameterState, momentum: float) -> None:
        """Makes room for momentum."""
        if momentum:
            momentum_buffers([parameter], [state])

    def state_bytes(self, parameter: nn.Parameter, momentum: float) -> int:
        """Those of momentum."""
        return bytes_of(parameter) if momentum else 0

    def adopt(self, states: States) -> None:
        """Leaves momentum where it is."""

    def _move(self, own: Plain, lr: float, weight_decay: float, momentum: float) -> None:
        rule: dict[str, Any] = {"weight_decay": weight_decay}
        rule |= {"momentum": momentum, "nesterov": self._nesterov and momentum > 0}
        if own.found_inf is not None:
            kept = momentum_buffers(own.parameters, own.states, alike=True) if momentum else []
            marked = {"found_inf": own.found_inf, "lr": lr}
            step_fused(ALL, own.weights, own.steps, kept, **marked, **rule)
            return
        rule["lr"] = float(lr)
        weights, fused = own.weights, self._options.fused
        if own.together and not (fused and weights[0].is_floating_point()):

            def buffers() -> list[Tensor]:
                return momentum_buffers(own.parameters, own.states)

            step_with_momentum(ALL, weights, own.steps, buffers, **rule)
        else:
            self._step_of_torch(own, rule)

    def _step_of_torch(self, own: Plain, rule: dict[str, Any]) -> None:
        """Torch's own functions, fused or one by one, know every layout and type."""
        if own.together and rule["momentum"]:
            momentum_buffers(own.parameters, own.states, alike=True)
        kept = [state.get("momentum_buffer") for state in own.states]
        buffers = [None if buffer is None else local(buffer) for buffer in kept]
        sgd(
            own.weights,
            own.steps,
            buffers,
            has_sparse_grad=any(step.is_sparse for step in own.steps),
            foreach=False,
            fused=own.together,
            dampening=0.0,
            maximize=False,
            **rule,
        )
        for state, before, buffer in zip(own.states, kept, buffers, strict=True):
            if before is None and buffer is not None:
                state["momentum_buffer"] = buffer


class AdamW(FirstOrder):
    """torch.optim.AdamW's update; there is none for a sparse gradient."""

    knows_found_inf = True

    def allocate(self, parameter: nn.Parameter, state: ParameterState, momentum: float) -> None:  # noqa: ARG002
        """Makes room for both averages."""
        if "exp_avg" not in state:
            device = self._counting_device(parameter)
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)

    def state_bytes(self, parameter: nn.Parameter, momentum: float) -> int:  # noqa: ARG002
        """Those of both averages and the count."""
        return 2 * bytes_of(parameter) + _STEP_BYTES

    def adopt(self, states: States) -> None:
        """Moves counts of steps to where the kernels in use expect them."""
        for parameter, state in states.items():
            if "step" in state:
                state["step"] = state["step"].to(self._counting_device(parameter))

    def _counting_device(self, parameter: nn.Parameter) -> torch.device:
        """Beside the parameter for fused kernels, on the CPU for others."""
        fused = self._options.fused
        fused = is_asynchronous(parameter.device) if fused is None else fused
        return parameter.device if fused else torch.device("cpu")

    def _move(self, own: Plain, lr: float, weight_decay: float, momentum: float) -> None:
        for parameter, state in zip(own.parameters, own.states, strict=True):
            self.allocate(parameter, state, momentum)
        for step in () if own.together else own.steps:
            allowed = (
                "dense for the base rule 'adamw': take Base('sgd'), or an optimizer of its own"
            )
            require("gradient", step.layout, step.layout == torch.strided, allowed)
        said, fused = self._options, self._fused(own) if own.together else None
        first, second = [
            kept_alike(name, own.parameters, own.states)
            if fused
            else [local(state[name]) for state in own.states]
            for name in ("exp_avg", "exp_avg_sq")
        ]
        adamw(
            own.weights,
            laid_like(own.weights, own.steps) if fused else own.steps,
            first,
            second,
            [],
            [state["step"] for state in own.states],
            fused=fused,
            found_inf=own.found_inf,
            has_complex=any(weight.is_complex() for weight in own.weights),
            amsgrad=False,
            beta1=said.betas[0],
            beta2=said.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=said.eps,
            maximize=False,
        )

    def _fused(self, own: Plain) -> bool | None:
        """Whether torch's fused kernel is taken for tensors that go together; None: its choice.

        On the CPU it walks through memory, so a gradient has to lie there in its weight's order.
        """
        first = own.weights[0]
        if not first.is_floating_point():
            return None
        if self._options.fused is not None:
            return self._options.fused
        alike = all(
            weight.stride() == step.stride()
            for weight, step in zip(own.weights, own.steps, strict=True)
        )
        return True if alike or is_asynchronous(first.device) else None


BASE_RULES: dict[BaseRule, type[FirstOrder]] = {"sgd": SGD, "adamw": AdamW}


def bytes_of(parameter: nn.Parameter) -> int:
    """Bytes of this rank's part of a parameter."""
    own = local(parameter)
    return own.numel() * own.element_size()
