"""What a rule decides about layers that are due, and what is said of those without statistics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from torch_thor.capture.capture import REPLACED
from torch_thor.curvature.due import DueLayer, DueMatrices, lots
from torch_thor.curvature.refresh import gather
from torch_thor.options.notices import warn
from torch_thor.options.trace_rule import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.stacks import Place
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.distributed.pooling import LayerStatistics
    from torch_thor.options.trace_rule import TraceRule


def tell_starved(layer: TrackedLayer, *, called: bool, sampled: bool) -> None:
    """Says once that a layer gets a gradient but no statistics.

    Args:
        layer: The layer, which remembers the cause.
        called: Whether its forward ran on any rank.
        sampled: Whether only a backward of sampled labels counts.
    """
    told = layer.cause or not layer.listened
    if told or (called and not sampled and not layer.obstacle):
        return
    if layer.obstacle and not (sampled and layer.obstacle is REPLACED):
        cause, remedy = layer.obstacle, "Exclude the layer, or see docs/coverage.md."
        if cause is REPLACED:
            remedy = (
                "Where you change a gradient of backward(), write into it (p.grad.copy_(...)); put "
                "one of torch.autograd.grad into its place as it is (p.grad = g)."
            )
    elif called:
        cause = "no backward of sampled labels reached it since the last step"
        remedy = "Call optimizer.sample_fisher(outputs) before loss.backward()."
    else:
        cause = "its forward hook saw no call since the last step"
        remedy = (
            "Build the optimizer before torch.compile(model), compile without fullgraph=True, call "
            "modules and not their weights, differentiate by backward() and not by torch.func, or "
            "exclude the layer."
        )
    layer.cause = cause
    what = f"Layer {layer.name!r} has a gradient but {cause}"
    warn(f"{what}, so its curvature is not updated. {remedy}")


def those_seen(
    places: Sequence[Place],
    statistics: Sequence[LayerStatistics],
    refreshed: Sequence[bool],
    dampings: Mapping[nn.Parameter, float],
    *,
    sampled: bool,
) -> list[DueLayer]:
    """The layers that any rank has statistics of; says so of those that lack them.

    Args:
        places: Layers that are due.
        statistics: What all ranks know of each.
        refreshed: Whether each one's inverses are due.
        dampings: λ of each weight.
        sampled: Whether only a backward of sampled labels counts.
    """
    found = []
    for place, seen, due in zip(places, statistics, refreshed, strict=True):
        layer = place.layer
        if seen.seen:
            damping, refreshes = dampings[layer.weight], due or not place.record.ready
            found.append(DueLayer(place.stack, place.slot, damping, seen, refreshes))
        elif seen.graded:
            tell_starved(layer, called=seen.called, sampled=sampled)
    return found


def decide(due_layers: Sequence[DueLayer], rule: TraceRule, ranks: Communicator) -> None:
    """Fills in change, decision and fold by a rule; one transfer to the host for all layers."""
    if rule.compare == "distance":
        gather([one for one in due_layers if one.refresh and one.record.ready], ranks)
    distances = _distances(due_layers, ranks)
    product = rule.damped_trace == "product"
    traces = [
        matrices.damped_traces(product=product).where(matrices.counts, math.nan)
        for matrices in map(DueMatrices, lots(due_layers))
    ]
    in_order = [one for lot in lots(due_layers) for one in lot]
    for due_layer, trace in zip(in_order, _gathered(traces).tolist(), strict=True):
        record = due_layer.record
        if not math.isfinite(trace):
            due_layer.fold, due_layer.decision = False, Decision.KEEP
        elif due_layer.refresh and record.trace is not None:
            change = relative_change(trace, record.trace)
            record.change = due_layer.change = distances.get(due_layer, change)
            due_layer.decision = rule.decide(due_layer.change)
            due_layer.fold = due_layer.decision is Decision.UPDATE
            record.frozen = due_layer.decision is Decision.FREEZE


def _distances(due_layers: Sequence[DueLayer], ranks: Communicator) -> dict[DueLayer, float]:
    """How far the batch moves the averages where a rule asked: the larger ‖X − X'‖ / ‖X'‖ of A, G.

    A factor that was all zeros and stays so has not moved.
    """
    found = {c: _lengths(c, c.blocks) for c in due_layers if c.blocks is not None}
    if not found:
        return {}
    lengths = torch.stack([value.to("cpu", torch.float64) for value in found.values()])
    sharded = [n for n, c in enumerate(found) if c.stack.shard is not None]
    if sharded:
        own = lengths[sharded, 1].square()
        lengths[sharded, 1] = ranks.total("distances of sharded layers", own).sqrt()
    gaps, old = lengths.unbind(-1)
    changes = torch.where(gaps > 0, gaps / old, 0.0).amax(1).tolist()
    return dict(zip(found, changes, strict=True))


def _lengths(due_layer: DueLayer, blocks: tuple[Tensor, Tensor]) -> Tensor:
    """(‖X − X'‖, ‖X'‖) of A and of G, of the rows that this rank holds: ``[2, 2]``."""
    stack, slot = due_layer.stack, due_layer.slot
    share, found = 1.0 - stack.keep(slot), []
    for factor, new in zip(stack.factors, blocks, strict=True):
        old = factor.blocks[slot]
        found += [share * (new - old).norm(), old.norm()]
    return torch.stack(found).view(2, 2)


def _gathered(values: Sequence[Tensor]) -> Tensor:
    """One vector of those of several types and devices."""
    return torch.cat([value.to(values[0].device, torch.float64) for value in values])


def relative_change(current: float, reference: float) -> float:
    """Returns Δ of eq. 8; ``inf`` where there is no reference yet or it is zero."""
    if reference == 0.0:
        return math.inf
    return abs(abs(current) - abs(reference)) / abs(reference)
