"""From gradients to preconditioned directions, all layers of a model at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.directions import lengths
from torch_thor.linalg.foreach import norms as norms_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.layers.layout import Pair
    from torch_thor.linalg.foreach import Lots
    from torch_thor.options.norm_control import NormControl


class DirectionPlan:
    """The way of some layers through their curvature, found once for the steps that all take it.

    Args:
        stacks: The model's curvature; a layer that has none yet keeps its source.
        moves: Says whether a parameter takes part.
        control: Norm control.
    """

    def __init__(
        self,
        stacks: Sequence[LayerStack],
        moves: Callable[[nn.Parameter], bool],
        control: NormControl | None,
    ) -> None:
        """Finds the layers."""
        found = [
            (stack, [slot for slot, layer in enumerate(stack.layers) if moves(layer.weight)])
            for stack in stacks
        ]
        self._chosen = [(stack, slots) for stack, slots in found if slots]
        self._parameters = [
            [_pair(stack.layers[slot], moves) for slot in slots] for stack, slots in self._chosen
        ]
        self._control = control
        self._lengths = None
        if control is not None and control.kind != "kl_clip":
            self._lengths = lengths.Lengths(
                control,
                [lengths.row_cut(stack, control) for stack, _ in self._chosen],
                [lengths.rows_of(stack, slots, control) for stack, slots in self._chosen],
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
            stack.direction(slots, source)
            for (stack, slots), source in zip(self._chosen, packed, strict=True)
        ]
        control = self._control
        if control is not None and control.kind == "spectral":
            raw = [lengths.orthogonalize(direction, control.iterations) for direction in raw]
        # The sources have served: their memory takes the directions.
        return [
            stack.matrices.read(slots, torch.mul(direction, factor, out=source))
            for (stack, slots), direction, factor, source in zip(
                self._chosen, raw, self._factors(raw, packed, rates), packed, strict=True
            )
        ]

    def _factors(
        self, raw: list[Tensor], packed: list[Tensor], rates: Mapping[nn.Parameter, float]
    ) -> Sequence[Tensor | float]:
        """What each stack's directions are multiplied by."""
        if not raw or self._control is None:
            return [1.0] * len(raw)
        if self._lengths is not None:
            return self._lengths.factors(raw, packed)
        own = [[rates[weight] for weight, _ in pairs] for pairs in self._parameters]
        clip = lengths.clip_factor(self._control.limit, raw, packed, own)
        return [clip.to(direction) for direction in raw]


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
    lengths = norms_of(lots, gradients)
    if len(lots) > 1:  # of several types, or devices
        lengths = [length.to(lengths[0].device, torch.float64) for length in lengths]
    return math.isfinite(torch.stack(lengths).sum().item())
