"""From calls to statistics: which (a, g) pairs reached backward since the last step.

A forward hook takes the wanted rows of the input at once, so a later in-place change of
the activation can't reach them, and hangs a hook on the *output tensor*; when its
gradient arrives, the pair is complete. Output-tensor hooks survive in-place activations,
modules used twice and activation checkpointing; full backward hooks don't.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.autograd import base_of, inside_backward, is_transformed, receives_gradient
from torch_thor.calls import Call, inverse_rows, joined, loss_terms, make_call, rows_of
from torch_thor.factors import FactorBatch, OneHotBatch
from torch_thor.hooks import EnterHook, ForwardHook, LeaveHook, Watches
from torch_thor.sampling import plan_rows
from torch_thor.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.utils.hooks import RemovableHandle

    from torch_thor.layers import Geometry, LayerAdapter
    from torch_thor.options import Statistics
    from torch_thor.shards import Shard


@dataclass(eq=False)
class TrackedLayer:
    """A weight that is preconditioned, with the module that uses it.

    Args:
        name: Qualified name of the module, or of its part.
        module: The module.
        adapter: Geometry of its type.
        geometry: Shape of the weight as matrices.
        weight: The trained weight.
        bias: The trained bias, where there is one.
        damping: λ of the weight's parameter group; the optimizer keeps it current.
        share: Where in an interval the layer refreshes, in [0, 1).
        armed: Whether its calls count now.
        called: Whether its forward ran since the last step.
        calls: Calls whose gradient has arrived.
        group: Number of the current forward pass since the last step.
        group_has_gradient: Whether a gradient of that pass has arrived.
    """

    name: str
    module: nn.Module
    adapter: LayerAdapter[Any]
    geometry: Geometry
    weight: nn.Parameter
    bias: nn.Parameter | None
    damping: float = 0.0
    share: float = 0.0
    armed: bool = False
    called: bool = False
    calls: list[Call] = field(default_factory=list)
    group: int = 0
    group_has_gradient: bool = False

    @cached_property
    def shard(self) -> Shard | None:
        """The rows that this rank owns, where it doesn't own all."""
        return shard_of(self.weight)

    @cached_property
    def kept(self) -> Geometry:
        """Shape of the matrices that this rank keeps."""
        shard = self.shard
        return self.geometry if shard is None else replace(self.geometry, outputs=shard.chunk)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight, and bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


class Capture:
    """Collects the calls of the layers that are armed.

    Args:
        options: Row budget, weight sharing, loss reduction.
        matched: Take the gradients of all rows that a one-hot layer counts, whatever the
            budget: EKFAC needs both sides of each row.
    """

    def __init__(self, options: Statistics, *, matched: bool = False) -> None:
        """Starts without hooks."""
        self.options = options
        self._matched = matched
        self.seed = 0
        self._sampled_backward = False
        self._handles: list[RemovableHandle] = []
        self._watches: list[Watches] = []

    def attach(self, layers: Iterable[TrackedLayer]) -> None:
        """Registers one forward hook a layer, or a pair of hooks around a hidden function."""
        hidden: dict[nn.Module, list[TrackedLayer]] = defaultdict(list)
        for layer in layers:
            if layer.adapter.inside_function:
                hidden[layer.module].append(layer)
                continue
            hook = ForwardHook(self, layer)
            self._handles.append(
                layer.module.register_forward_hook(
                    # Before fully_shard takes the weight away again.
                    hook,
                    with_kwargs=True,
                    prepend=True,
                )
            )
        for module, inside in hidden.items():
            watches = Watches(self, inside)
            self._watches.append(watches)
            enter, leave = EnterHook(watches), LeaveHook(watches)
            self._handles.append(module.register_forward_pre_hook(enter))
            self._handles.append(module.register_forward_hook(leave, always_call=True))

    def remove(self) -> None:
        """Takes every hook off the model again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watches.clear()

    def arm(self, layers: Iterable[TrackedLayer], wanted: set[TrackedLayer], seed: int) -> None:
        """Drops what was collected and says which layers count until the next step."""
        self.seed = seed
        for layer in layers:
            layer.armed = layer in wanted
            layer.calls.clear()
            layer.called = False
            layer.group, layer.group_has_gradient = 0, False
        for watches in self._watches:
            watches.arm()

    @contextmanager
    def sampled_backward(self) -> Iterator[None]:
        """Inside, a backward is one of sampled labels, the only kind that "mc" counts."""
        self._sampled_backward = True
        try:
            yield
        finally:
            self._sampled_backward = False

    # A compiled model pays a graph break in steps with statistics, and none in the others.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Tensor, output: Tensor, first: int = 0
    ) -> None:
        """Takes the input rows and waits for the gradient of the output.

        Args:
            layer: The layer.
            weight: The weight that the call used.
            inputs: Input of the call.
            output: Output of the call.
            first: The first matrix of the layer that took part in the call.
        """
        if is_transformed(output):
            return
        _begin_call(layer)
        if not (weight.requires_grad and output.requires_grad and output.numel()):
            return
        options, module, geometry = self.options, layer.module, layer.geometry
        # Means of one-hot rows are no longer one-hot, so these are always expanded.
        reduce = geometry.unit_wise or (options.weight_sharing == "reduce" and not geometry.one_hot)
        with torch.no_grad():
            samples, positions = layer.adapter.call_shape(module, inputs, output)
            budget = None if geometry.one_hot and self._matched else options.rows
            chosen = plan_rows(samples, positions, budget, reduce=reduce, seed=self.seed)
            plan = replace(chosen, output_shape=tuple(output.shape))
            rows = layer.adapter.input_rows(module, inputs.detach(), plan, bias=geometry.bias)
        group = layer.group
        base = base_of(output)
        watched, is_view = (output, False) if base is None else (base, True)
        place = (output.shape, output.stride(), output.storage_offset())

        def on_gradient(gradient: Tensor) -> None:
            if not layer.armed:
                return
            sampled = options.fisher == "mc" and self._sampled_backward
            if not sampled and (options.fisher == "mc" or not receives_gradient(weight)):
                return
            with torch.no_grad():
                if is_view:
                    gradient = gradient.contiguous().as_strided(*place)
                gradients = layer.adapter.output_rows(module, gradient.detach(), plan)
                layer.calls.append(make_call(geometry, rows, gradients, plan, first, group))
            layer.group_has_gradient = True

        watched.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def batch(
        self, layer: TrackedLayer, gradient_scale: float = 1.0
    ) -> tuple[FactorBatch, FactorBatch] | None:
        """Returns the statistics (A, G) of a layer since the last step, if it has any.

        Args:
            layer: The layer.
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        calls, one_hot = layer.calls, layer.geometry.one_hot
        if not calls:
            return None
        if layer.geometry.unit_wise:
            calls = joined(calls)
        samples: dict[int, int] = {}
        for call in calls:
            samples[call.group] = max(samples.get(call.group, 0), call.plan.samples)
        count = sum(samples.values())
        terms = loss_terms(calls)
        scale = {"mean": count, "positions_mean": terms, "sum": 1.0 / count}
        # A sampled loss is not multiplied by anything.
        scaled_by = 1.0 if self.options.fisher == "mc" else gradient_scale
        weights = tuple(call.plan.scale for call in calls)
        kind = OneHotBatch if one_hot else FactorBatch
        return (
            kind(
                tuple(call.inputs for call in calls),
                (1.0,) * len(calls) if one_hot else weights,
                inverse_rows(calls, layer.weight),
                rows_of(calls),
            ),
            FactorBatch(
                tuple(call.gradients for call in calls),
                weights,
                scale[self.options.loss_reduction] / scaled_by**2,
                terms if self.options.loss_reduction == "positions_mean" else count,
            ),
        )


def _begin_call(layer: TrackedLayer) -> None:
    """Notes that an armed layer runs, and whether that opens a new micro-batch."""
    layer.called = True
    if layer.group_has_gradient and not inside_backward():
        # A forward after a backward belongs to the next micro-batch, unless a
        # checkpointed segment is being recomputed.
        layer.group, layer.group_has_gradient = layer.group + 1, False
