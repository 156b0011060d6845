"""What users see of an optimizer's steps beside its curvature: memory, lengths, directions."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor import linalg
from torch_thor.curvature.surface import HasCurvature
from torch_thor.directions.looking import directions_again
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import add, lots_of
from torch_thor.update.base_rules import bytes_of

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Mapping, Sequence

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.memory import MemoryReport
    from torch_thor.curvature.report import Moves
    from torch_thor.directions.controls import Control
    from torch_thor.options.update import Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.momentum import States
    from torch_thor.update.rule import UpdateRule


class ReportsSteps(HasCurvature):
    """The reports of an optimizer that moves parameters itself."""

    _rule: UpdateRule
    _control: Control
    _taken_at: Mapping[int, float | Tensor] = MappingProxyType({})  # rates of the latest step
    _share = 1.0  # of them, with which it was taken
    param_groups: list[ParameterGroup]
    state: defaultdict[Tensor, Any]

    @property
    def skipped_steps(self) -> int:
        """Steps that were left out because a gradient was not finite; a scaler's don't count.

        With sharded weights each rank counts its own rows' steps.
        """
        return self.engine.skips.total

    def memory(self) -> MemoryReport:
        """Says what curvature and momentum take, see ``HasCurvature.memory``."""
        report, curved = super().memory(), self.engine.followed.layer_of
        own = sum(self._rule.state_bytes(group, curved) for group in self.param_groups)
        kept = {p for group in self.param_groups if group["momentum"] for p in group["params"]}
        momentum = {
            layer.name: sum(bytes_of(p) for p in layer.parameters if p in kept)
            for layer in self.engine.layers
        }
        layers = tuple(replace(one, momentum=momentum[one.name]) for one in report)
        return replace(report, layers=layers, state=own)

    def _damping_of(self) -> Mapping[nn.Parameter, float]:
        return {p: group["damping"] for group in self.param_groups for p in group["params"]}

    def _latest_moves(self) -> Moves:
        curved, order = self.engine.store.curved_by, self._rule.order
        sources: dict[nn.Parameter, Tensor] = {}
        group_of: dict[nn.Parameter, ParameterGroup] = {}
        for group in self.param_groups:
            own = [p for p in group["params"] if p in curved]
            sources |= _sources(order, group["momentum"], own, self.state)
            group_of |= dict.fromkeys(own, group)
        needed = self._control.needs_rates
        rates = {p: float(self._rate(group_of[p])) for p in sources} if needed else {}
        found = directions_again(self.engine.stacks, self._control, sources, rates)
        return [(layers, self._as_move(layers, own, group_of)) for layers, own in found]

    def _as_move(
        self,
        layers: Sequence[TrackedLayer],
        found: Tensor,
        group_of: Mapping[nn.Parameter, ParameterGroup],
    ) -> Tensor:
        """Lengths of steps ÷ lengths of weights, and how far directions were turned: ``[2, l]``."""
        lengths, turned = found.unbind(0)
        weights = _lengths([[local(p) for p in layer.parameters] for layer in layers], found)
        groups = [group_of[layer.weight] for layer in layers]
        if not self._rule.order.momentum_first:
            # What momentum has made of the directions is what has moved the weights.
            buffers = [self._buffers(own.parameters) for own in layers]
            moved = _lengths(buffers, found)
            last = [
                bool(group["momentum"] and own) for group, own in zip(groups, buffers, strict=True)
            ]
            is_last = linalg.vector(last, found.dtype, found.device) > 0
            lengths = torch.where(is_last, moved, lengths)
        rate = _vector([self._rate(group) for group in groups], found)
        return torch.stack((lengths * rate / weights, turned))

    def _rate(self, group: ParameterGroup) -> float | Tensor:
        """The latest step's rate; a scheduler may have moved on since."""
        rate: float | Tensor = self._taken_at.get(id(group), group["lr"])
        return rate * self._share

    def _buffers(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        return [one for p in parameters if (one := _buffer(p, self.state)) is not None]


def _vector(rates: Sequence[float | Tensor], like: Tensor) -> Tensor:
    """Rates as a vector; those on the device stay there."""
    if any(isinstance(rate, Tensor) for rate in rates):
        return torch.stack([torch.as_tensor(rate, device=like.device) for rate in rates])
    return linalg.vector([float(rate) for rate in rates], like.dtype, like.device)


def _buffer(parameter: nn.Parameter, states: States) -> Tensor | None:
    kept = states[parameter].get("momentum_buffer") if parameter in states else None
    return None if kept is None else local(kept)


def _sources(
    order: Update, momentum: float, parameters: Sequence[nn.Parameter], states: States
) -> dict[nn.Parameter, Tensor]:
    """What a step preconditioned, where that can still be had."""
    gradients = {p: local(p.grad) for p in parameters if p.grad is not None}
    if not (momentum and order.momentum_first):
        return gradients
    found = {p: own for p in parameters if (own := _buffer(p, states)) is not None}
    ahead = [p for p in found if p in gradients] if order.nesterov else []
    if ahead:
        fresh, kept = [gradients[p] for p in ahead], [found[p] for p in ahead]
        steps = add(lots_of(fresh, kept), fresh, kept, alpha=momentum)
        found.update(zip(ahead, steps, strict=True))
    return found


def _lengths(tensors: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
    """Euclidean norm of all tensors of a list together, ``[l]``; zero of none."""
    flat = [tensor for own in tensors for tensor in own]
    if not flat:
        return like.new_zeros(len(tensors))
    squares = linalg.norms(flat, like.dtype).square()
    own = linalg.owners(tuple(map(len, tensors)), like.device)
    return squares.new_zeros(len(tensors)).index_add_(0, own, squares).sqrt()
