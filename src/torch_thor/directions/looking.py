"""The directions of the latest step once more: nothing of a step is written to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_thor.directions.plan import alike, lengths_of
from torch_thor.directions.together import those_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.directions.controls import Control


def directions_again(
    stacks: Sequence[LayerStack],
    control: Control,
    sources: Mapping[nn.Parameter, Tensor],
    rates: Mapping[nn.Parameter, float],
) -> list[tuple[list[TrackedLayer], Tensor]]:
    """Returns lengths of the layers' directions, and how far they are turned: ``[2, l]`` a stack.

    A direction is turned by 1 − cos² of its angle with what was preconditioned.

    Args:
        stacks: The model's curvature.
        control: Norm control.
        sources: What was preconditioned, of parameters that have curvature.
        rates: The weights' learning rates, if the control needs them.
    """
    chosen = (those_of(stack, sources.__contains__) for stack in stacks)
    found = [one for one in chosen if one.slots]
    packed = [one.write(sources) for one in found]
    raw = [
        one.stack.direction(one.slots, source) for one, source in zip(found, packed, strict=True)
    ]
    raw = control.turn(raw, [one.stack.positions for one in found])
    lengths = lengths_of(control, found)
    if lengths is not None and raw:
        factors: Sequence[Tensor | float] = lengths.factors(raw, packed, again=True)
    else:
        factors = alike(control, found, raw, packed, rates)
    seen = []
    for one, direction, source, factor in zip(found, raw, packed, factors, strict=True):
        layers = [one.stack.layers[slot] for slot in one.slots]
        seen.append((layers, _compared(direction * factor, source)))
    return seen


def _compared(directions: Tensor, sources: Tensor) -> Tensor:
    """Lengths of directions ``[l, k, out, columns]``, and 1 − cos² of their angles with sources."""
    dtype = torch.promote_types(directions.dtype, torch.float32)
    ours, theirs = (side.to(dtype).flatten(1) for side in (directions, sources))
    own, other = (torch.linalg.vector_norm(side, dim=1) for side in (ours, theirs))
    cosines = (ours * theirs).sum(1) / (own * other)
    return torch.stack((own, (1.0 - cosines.square()).clamp_min(0.0)))
