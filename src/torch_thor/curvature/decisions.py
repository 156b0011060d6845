"""Layers that are due, on their way from statistics to a decision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.capture.capture import REPLACED
from torch_thor.curvature.stacks import Place
from torch_thor.distributed.pooling import LayerStatistics
from torch_thor.options.notices import warn
from torch_thor.options.trace_rule import Decision, LayerDecision, TraceRule

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.capture.statistics import Batch
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.distributed.communicator import Communicator


@dataclass(eq=False)
class DueLayer(Place):
    """One due layer, with the statistics of all ranks since the last step."""

    damping: float  # λ
    statistics: LayerStatistics
    refresh: bool  # whether its inverses are due, and not its factors alone
    trace: float = 0.0  # tr(F + λI) with this batch folded in
    decision: Decision = Decision.UPDATE
    change: float = math.inf  # Δ of eq. 8
    fold: bool = True  # whether the batch enters the running average
    blocks: tuple[Tensor, Tensor] | None = None  # (A, G) of the batch, if the rule asked for them

    def report(self, step: int) -> LayerDecision:
        """Returns the entry of ``optimizer.last_decisions``."""
        return LayerDecision(self.layer.name, step, self.decision, self.change)


def statistics_of(place: Place, batch: Batch | None) -> LayerStatistics:
    """What this rank knows of a due layer."""
    stack, layer, seen = place.stack, place.layer, batch is not None
    a, g = batch or stack.empty_batch()
    traces = (a.trace(stack.dtype), g.trace(stack.dtype))
    graded = layer.weight.grad is not None
    return LayerStatistics(
        layer.name, (a, g), traces, seen=seen, called=layer.called, graded=graded
    )


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


def decide(due_layers: list[DueLayer], rule: TraceRule | None, ranks: Communicator) -> None:
    """Fills in trace, change, decision and fold; one transfer to the host for all layers.

    Statistics that are not finite never reach a factor: the layer is kept.
    """
    traces = _stacked([damped_trace(c, rule) for c in due_layers]).tolist()
    distances = _distances(due_layers, ranks)
    for due_layer, trace in zip(due_layers, traces, strict=True):
        due_layer.trace, record = trace, due_layer.record
        if not math.isfinite(trace):
            due_layer.fold, due_layer.decision = False, Decision.KEEP
        elif due_layer.refresh and record.trace is not None:
            change = relative_change(trace, record.trace)
            due_layer.change = distances.get(due_layer, change)
            if rule is not None:
                due_layer.decision = rule.decide(due_layer.change)
                due_layer.fold = due_layer.decision is Decision.UPDATE
                record.frozen = due_layer.decision is Decision.FREEZE


def damped_trace(due_layer: DueLayer, rule: TraceRule | None) -> Tensor:
    """tr(F + λI) that the running average would have with this batch; a scalar tensor."""
    stack, slot = due_layer.stack, due_layer.slot
    share = 1.0 - stack.keep(slot)
    trace_a, trace_g = (
        factor.traces[slot].lerp(trace, share)
        for factor, trace in zip((stack.a, stack.g), due_layer.statistics.traces, strict=True)
    )
    if rule is not None and rule.damped_trace == "product":
        return stack.product_trace(due_layer.damping, trace_a, trace_g)
    traces = trace_a.unsqueeze(0), trace_g.unsqueeze(0)
    shift_a, shift_g = stack.shifts([due_layer.damping], *traces)
    damped_a = trace_a + shift_a[0] * stack.geometry.columns
    damped_g = trace_g + shift_g[0] * stack.outputs
    return (damped_a * damped_g).sum()


def _distances(due_layers: list[DueLayer], ranks: Communicator) -> dict[DueLayer, float]:
    """How far the batch moves the averages where a rule asked: the larger ‖X − X'‖ / ‖X'‖ of A, G.

    A factor that was all zeros and stays so has not moved.
    """
    found = {c: _lengths(c, *c.blocks) for c in due_layers if c.blocks is not None}
    if not found:
        return {}
    lengths = _stacked(list(found.values()))
    sharded = [n for n, c in enumerate(found) if c.stack.shard is not None]
    if sharded:
        own = lengths[sharded, 1].square()
        lengths[sharded, 1] = ranks.total("distances of sharded layers", own).sqrt()
    gaps, old = lengths.unbind(-1)
    changes = torch.where(gaps > 0, gaps / old, 0.0).amax(1).tolist()
    return dict(zip(found, changes, strict=True))


def _lengths(due_layer: DueLayer, a: Tensor, g: Tensor) -> Tensor:
    """(‖X − X'‖, ‖X'‖) of A and of G, of the rows that this rank holds: ``[2, 2]``."""
    stack, slot = due_layer.stack, due_layer.slot
    share, found = 1.0 - stack.keep(slot), []
    for factor, blocks in zip((stack.a, stack.g), stack.own((a, g)), strict=True):
        old = factor.blocks[slot]
        found += [share * (blocks - old).norm(), old.norm()]
    return torch.stack(found).view(2, 2)


def _stacked(values: list[Tensor]) -> Tensor:
    """Stacks tensors of layers that may be of several types and devices."""
    return torch.stack([value.to(values[0].device, torch.float64) for value in values])


def relative_change(current: float, reference: float) -> float:
    """Returns Δ of eq. 8; ``inf`` where there is no reference yet or it is zero."""
    if reference == 0.0:
        return math.inf
    return abs(abs(current) - abs(reference)) / abs(reference)
