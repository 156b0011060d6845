"""From gradients to preconditioned directions, all layers of a model at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import ready_banded_layers
from torch_thor.directions.controls import LengthControl
from torch_thor.directions.lengths import Lengths, row_cut, rows_of
from torch_thor.linalg.foreach import norms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import Control
    from torch_thor.layers.layout import Pair
    from torch_thor.linalg.foreach import Lots


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
        """Finds the layers."""
        self.banded = ready_banded_layers(stacks, moves, control)
        in_bands = {parameter for large in self.banded for parameter in large.layer.parameters}

        def together(parameter: nn.Parameter) -> bool:
            return moves(parameter) and parameter not in in_bands

        self.goes_together = together
        found = [
            (stack, [n for n, layer in enumerate(stack.layers) if together(layer.weight)])
            for stack in stacks
        ]
        self._chosen = [(stack, slots) for stack, slots in found if slots]
        self._parameters = [
            [_pair(stack.layers[slot], together) for slot in slots] for stack, slots in self._chosen
        ]
        self._control = control
        self._lengths = None
        if isinstance(control, LengthControl):
            self._lengths = Lengths(
                control,
                [row_cut(stack, control) for stack, _ in self._chosen],
                [rows_of(stack, slots, control) for stack, slots in self._chosen],
                [stack.held for stack, _ in self._chosen],
            )

    def take(
        self, sources: Mapping[nn.Parameter, Tensor], rates: Mapping[nn.Parameter, float]
    ) -> dict[nn.Parameter, Tensor]:
        """Preconditions gradients or momenta, stack by stack, and sets each layer's length.

        Args:
            sources: What is preconditioned, by parameter.
            rates: The weights' learning rates, which the KL clip needs.

        Returns:
            A direction for every source; memory that the next call may write to.
        """
        directions = dict(sources)
        pairs = [
            [(sources[w], None if b is None else sources[b]) for w, b in own]
            for own in self._parameters
        ]
        for own, steps in zip(self._parameters, self._precondition(pairs, rates), strict=True):
            for (weight, bias), (step, bias_step) in zip(own, steps, strict=True):
                directions[weight] = step
                if bias is not None and bias_step is not None:
                    directions[bias] = bias_step
        return directions

    def _precondition(
        self, sources: list[list[Pair]], rates: Mapping[nn.Parameter, float]
    ) -> list[list[Pair]]:
        """Returns directions in the form of the sources: of each stack, of each layer."""
        packed = [
            stack.matrices.write(own) for (stack, _), own in zip(self._chosen, sources, strict=True)
        ]
        raw = [
            self._control.turn(stack.direction(slots, source))
            for (stack, slots), source in zip(self._chosen, packed, strict=True)
        ]
        factors = self._factors(raw, packed, rates)
        directions = []
        for (stack, slots), one, factor, memory in zip(
            self._chosen, raw, factors, packed, strict=True
        ):
            # The sources have served: their memory takes the directions.
            torch.mul(one, factor, out=memory)
            directions.append(stack.matrices.read(slots, memory))
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
        own = [[rates[w] for w, _ in pairs] if needed else [] for pairs in self._parameters]
        factor = self._control.factor(raw, packed, own)
        return [factor.to(one) if isinstance(factor, Tensor) else factor for one in raw]


def _pair(
    layer: TrackedLayer, moves: Callable[[nn.Parameter], bool]
) -> tuple[nn.Parameter, nn.Parameter | None]:
    return layer.weight, layer.bias if layer.bias is not None and moves(layer.bias) else None


def all_finite(gradients: list[Tensor], lots: Lots) -> bool:
    """Says whether no gradient holds NaN or Inf, and no norm overflows; waits for the device.

    The Euclidean norm is vectorized where the largest entry is not; it is taken in float32
    at least, so that half types don't overflow. One sum of all norms stands for them.

    Args:
        gradients: At least one.
        lots: Which of them go together.
    """
    lengths = norms(lots, gradients)
    if len(lots) > 1:  # of several types, or devices
        lengths = [length.to(lengths[0].device, torch.float64) for length in lengths]
    return math.isfinite(torch.stack(lengths).sum().item())
