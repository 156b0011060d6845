"""From gradients to preconditioned directions, all layers of a model at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import banded_layers
from torch_thor.directions.controls import LengthControl
from torch_thor.directions.lengths import Lengths, row_cut, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import Control


@dataclass(frozen=True)
class _Together:
    """Layers of a stack that take the way together."""

    stack: LayerStack
    slots: list[int]
    parameters: list[tuple[nn.Parameter, nn.Parameter | None]]  # weight, and bias if that moves

    def write(self, sources: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """Lays what is preconditioned out as ``[l, k, out, columns]``."""
        return self.stack.matrices.write(
            [(sources[w], None if b is None else sources[b]) for w, b in self.parameters]
        )

    def read(self, matrices: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Inverts ``write``."""
        steps = self.stack.matrices.read(self.slots, matrices)
        for (weight, bias), (step, bias_step) in zip(self.parameters, steps, strict=True):
            yield weight, step
            if bias is not None and bias_step is not None:
                yield bias, bias_step


class DirectionPlan:
    """The way of some layers through their curvature, found once for the steps that all take it.

    Args:
        stacks: The model's curvature; a layer that has none yet keeps its source.
        moves: Says whether a parameter takes part.
        control: Norm control.

    Attributes:
        banded: Large layers, which go some rows at a time.
        goes_together: Says whether a parameter goes with all others.
    """

    def __init__(
        self,
        stacks: Sequence[LayerStack],
        moves: Callable[[nn.Parameter], bool],
        control: Control,
    ) -> None:
        self.banded = banded_layers(stacks, moves, control)
        in_bands = {parameter for large in self.banded for parameter in large.layer.parameters}

        def together(parameter: nn.Parameter) -> bool:
            return moves(parameter) and parameter not in in_bands

        self.goes_together = together
        found = [_those_of(stack, together) for stack in stacks]
        self._chosen = [one for one in found if one.slots]
        self._control = control
        self._lengths = None
        if isinstance(control, LengthControl):
            self._lengths = Lengths(
                control,
                [row_cut(one.stack, control) for one in self._chosen],
                [rows_of(one.stack, one.slots, control) for one in self._chosen],
                [one.stack.held for one in self._chosen],
            )

    def take(
        self, sources: Mapping[nn.Parameter, Tensor], rates: Mapping[nn.Parameter, float]
    ) -> dict[nn.Parameter, Tensor]:
        """Preconditions gradients or momenta, stack by stack, and sets each layer's length.

        Args:
            sources: What is preconditioned, by parameter.
            rates: The weights' learning rates, if the control needs them.

        Returns:
            A direction for every source; memory that the next call may write to.
        """
        packed = [one.write(sources) for one in self._chosen]
        raw = [
            self._control.turn(one.stack.direction(one.slots, source))
            for one, source in zip(self._chosen, packed, strict=True)
        ]
        factors = self._factors(raw, packed, rates)
        directions = dict(sources)
        for one, direction, factor, memory in zip(self._chosen, raw, factors, packed, strict=True):
            # The sources have served: their memory takes the directions.
            torch.mul(direction, factor, out=memory)
            directions.update(one.read(memory))
        return directions

    def _factors(
        self, raw: list[Tensor], packed: list[Tensor], rates: Mapping[nn.Parameter, float]
    ) -> Sequence[Tensor | float]:
        """What each stack's directions are multiplied by."""
        if not raw:
            return []
        if self._lengths is not None:
            return self._lengths.factors(raw, packed)
        needed = self._control.needs_rates
        own = [[rates[w] for w, _ in one.parameters] if needed else [] for one in self._chosen]
        factor = self._control.factor(raw, packed, own)
        return [factor.to(one) if isinstance(factor, Tensor) else factor for one in raw]


def _those_of(stack: LayerStack, moves: Callable[[nn.Parameter], bool]) -> _Together:
    slots = [slot for slot, layer in enumerate(stack.layers) if moves(layer.weight)]
    layers = [stack.layers[slot] for slot in slots]
    return _Together(
        stack,
        slots,
        [
            (one.weight, None if one.bias is None or not moves(one.bias) else one.bias)
            for one in layers
        ],
    )
