"""From gradients to preconditioned directions, all layers of a model at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor import norms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch_thor.capture import TrackedLayer
    from torch_thor.matrices import Pair
    from torch_thor.options import NormControl
    from torch_thor.stacks import LayerStack

ParameterGroup: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class GroupPlan:
    """A parameter group sorted by how its parameters step.

    Args:
        group: The group.
        layers: Tracked layers whose weight is in it.
        curved: Parameters of tracked layers.
        plain: All others, which step by the base rule.
    """

    group: ParameterGroup
    layers: tuple[TrackedLayer, ...]
    curved: tuple[nn.Parameter, ...]
    plain: tuple[nn.Parameter, ...]


def plan_groups(
    groups: Iterable[ParameterGroup], layer_of: Mapping[nn.Parameter, TrackedLayer]
) -> list[GroupPlan]:
    """Sorts each group's parameters into those of tracked layers and all others."""
    plans = []
    for group in groups:
        curved = tuple(p for p in group["params"] if p in layer_of)
        plain = tuple(p for p in group["params"] if p not in layer_of)
        layers = tuple(layer_of[p] for p in curved if layer_of[p].weight is p)
        plans.append(GroupPlan(group, layers, curved, plain))
    return plans


def precondition(
    stacks: Sequence[LayerStack],
    sources: Mapping[nn.Parameter, Tensor],
    control: NormControl | None,
    plans: Sequence[GroupPlan],
) -> dict[nn.Parameter, Tensor]:
    """Preconditions gradients or momenta, stack by stack, and sets each layer's length.

    Args:
        stacks: The model's curvature; a layer without any keeps its source.
        sources: What is preconditioned, by parameter.
        control: Norm control.
        plans: Groups, for the learning rates that the KL clip needs.

    Returns:
        A direction for every source.
    """
    chosen = [
        (stack, [n for n, layer in enumerate(stack.layers) if layer.weight in sources])
        for stack in stacks
    ]
    chosen = [(stack, slots) for stack, slots in chosen if slots]
    rates = None
    if control is not None and control.kind == "kl_clip":
        rate_of = {layer.name: float(p.group["lr"]) for p in plans for layer in p.layers}
        rates = [[rate_of[stack.layers[slot].name] for slot in slots] for stack, slots in chosen]
    pairs = [[_pair(stack.layers[n], sources) for n in slots] for stack, slots in chosen]
    found = precondition_stacks(chosen, pairs, control, rates)
    directions = dict(sources)
    for (stack, slots), steps in zip(chosen, found, strict=True):
        for slot, (weight, bias) in zip(slots, steps, strict=True):
            layer = stack.layers[slot]
            directions[layer.weight] = weight
            if layer.bias is not None and layer.bias in sources and bias is not None:
                directions[layer.bias] = bias
    return directions


def precondition_stacks(
    chosen: Sequence[tuple[LayerStack, list[int]]],
    sources: Sequence[list[Pair]],
    control: NormControl | None,
    rates: Sequence[Sequence[float]] | None = None,
) -> list[list[Pair]]:
    """Preconditions weight- and bias-shaped tensors of some layers of each stack.

    Args:
        chosen: Stacks, and the layers of each.
        sources: Of each stack, of each layer.
        control: Norm control.
        rates: Learning rates, the same way; the KL clip needs them.

    Returns:
        Directions in the form of the sources; memory that the next call may write to.
    """
    if not chosen:
        return []
    packed = [stack.matrices.write(own) for (stack, _), own in zip(chosen, sources, strict=True)]
    raw = [
        stack.direction(slots, source)
        for (stack, slots), source in zip(chosen, packed, strict=True)
    ]
    if control is not None and control.kind == "spectral":
        raw = [norms.orthogonalize(direction, control.iterations) for direction in raw]
    if control is None:
        factors: Sequence[Tensor | float] = [1.0] * len(raw)
    elif rates is not None:
        clip = norms.clip_factor(control.limit, raw, packed, rates)
        factors = [clip.to(direction) for direction in raw]
    else:
        cuts = [stack.row_cut(control) for stack, _ in chosen]
        rows = [stack.rows_of(slots, control) for stack, slots in chosen]
        factors = norms.length_factors(control, raw, packed, cuts, rows)
    # The sources have served: their memory takes the directions.
    return [
        stack.matrices.read(slots, torch.mul(direction, factor, out=source))
        for (stack, slots), direction, factor, source in zip(
            chosen, raw, factors, packed, strict=True
        )
    ]


def _pair(layer: TrackedLayer, sources: Mapping[nn.Parameter, Tensor]) -> Pair:
    return sources[layer.weight], None if layer.bias is None else sources.get(layer.bias)


def all_finite(gradients: list[Tensor]) -> bool:
    """Says whether no gradient holds NaN or Inf, and no norm overflows; waits for the device.

    The Euclidean norm is vectorized where the largest entry is not; it is taken in float32
    at least, so that half types don't overflow. One sum of all norms stands for them.
    """
    wide = any(gradient.dtype == torch.float64 for gradient in gradients)
    lengths = torch._foreach_norm(gradients, dtype=torch.float64 if wide else torch.float32)
    device = lengths[0].device
    return math.isfinite(torch.stack([length.to(device) for length in lengths]).sum().item())
