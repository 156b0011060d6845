"""From calls to statistics: which (a, g) pairs reached backward since the last step.

A forward hook takes the wanted rows of the input at once, so a later in-place change of
the activation can't reach them, and hangs a hook on the *output tensor*; when its
gradient arrives, the pair is complete. Output-tensor hooks survive in-place activations,
modules used twice and activation checkpointing; full backward hooks don't.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.autograd import (
    Delivery,
    as_plain,
    base_of,
    delivery_of,
    inside_backward,
    is_transformed,
    on_gradient_of,
    require_plain,
    running_backward,
    when_backward_ends,
)
from torch_thor.calls import Call, inverse_rows, joined, loss_terms, make_call, rows_of
from torch_thor.factors import FactorBatch, OneHotBatch
from torch_thor.hooks import EnterHook, ForwardHook, LeaveHook, Watches, heard_by_others, take_off
from torch_thor.ledger import Ledger
from torch_thor.sampling import plan_rows
from torch_thor.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.utils.hooks import RemovableHandle

    from torch_thor.layers import Geometry, LayerAdapter
    from torch_thor.options import Statistics
    from torch_thor.shards import Shard


REPLACED = "none of its calls made the gradient that stands in .grad (was it replaced?)"


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
        part: Name below the module's, where the module has several weights.
        damping: λ of the weight's parameter group; the optimizer keeps it current.
        share: Where in an interval the layer refreshes, in [0, 1).
        armed: Whether its calls count now.
        called: Whether its forward ran since the last step.
        obstacle: Why the statistics since the last step can't be had; empty where they can.
        cause: Why it has no curvature, once that was said.
        listened: Whether a step without statistics is strange: no empty call, no new layer.
        group: Number of the current forward pass since the last step.
        group_has_gradient: Whether a gradient of that pass has arrived.
    """

    name: str
    module: nn.Module
    adapter: LayerAdapter[Any]
    geometry: Geometry
    weight: nn.Parameter
    bias: nn.Parameter | None
    part: str = ""
    damping: float = 0.0
    share: float = 0.0
    armed: bool = False
    called: bool = False
    obstacle: str = ""
    cause: str = ""
    listened: bool = False
    group: int = 0
    group_has_gradient: bool = False

    @cached_property
    def ledger(self) -> Ledger:
        """The calls whose gradient stands in ``weight.grad``."""
        return Ledger(self.weight)

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
    def identity(self) -> tuple[nn.Module, str]:
        """What stays when names and parameters change."""
        return self.module, self.part

    def is_as(self, other: TrackedLayer) -> bool:
        """Whether it is another one's layer with the same parameters."""
        alike = self.weight is other.weight and self.bias is other.bias
        return alike and self.geometry == other.geometry and self.adapter is other.adapter

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
        weakref.finalize(self, take_off, self._handles)

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

    def __deepcopy__(self, memo: dict[int, object]) -> Capture:
        """A copy has no hooks: whoever copies the layers too attaches it to them."""
        return Capture(self.options, matched=self._matched)

    def rivals(self, layers: Iterable[TrackedLayer]) -> list[str]:
        """Names of the layers whose weight another capture listens to as well."""
        return [layer.name for layer in layers if heard_by_others(self, layer)]

    def remove(self) -> None:
        """Takes every hook off the model again."""
        take_off(self._handles)
        self._watches.clear()

    def forget(self, layers: Iterable[TrackedLayer]) -> None:
        """Drops what was collected."""
        for layer in layers:
            layer.ledger.clear()
            layer.called, layer.obstacle, layer.listened = False, "", True
            layer.group, layer.group_has_gradient = 0, False

    def arm(self, layers: Iterable[TrackedLayer], wanted: set[TrackedLayer], seed: int) -> None:
        """Says which layers count until the next step."""
        self.seed = seed
        for layer in layers:
            layer.armed = layer in wanted
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
        if not output.numel():
            layer.listened = False
        elif weight.requires_grad and output.requires_grad:
            with self.obstructing(layer):
                require_plain(output)
                self._await(layer, weight, as_plain(inputs), output, first)

    @contextmanager
    def obstructing(self, layer: TrackedLayer) -> Iterator[None]:
        """Inside, an error costs the layer its statistics of this step, and the user nothing."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a forward that works without us has to work)
            said = str(error).strip().partition("\n")[0]
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            layer.obstacle = f"its call can't be understood ({kind}{said})"

    def _await(
        self, layer: TrackedLayer, weight: Tensor, inputs: Tensor, output: Tensor, first: int
    ) -> None:
        options, module, geometry = self.options, layer.module, layer.geometry
        # Means of one-hot rows are no longer one-hot, so these are always expanded.
        reduce = geometry.unit_wise or (options.weight_sharing == "reduce" and not geometry.one_hot)
        with torch.no_grad():
            samples, positions = layer.adapter.call_shape(module, inputs, output)
            budget = None if geometry.one_hot and self._matched else options.rows
            chosen = plan_rows(samples, positions, budget, reduce=reduce, seed=self.seed)
            plan = replace(chosen, output_shape=tuple(output.shape))
            rows = layer.adapter.input_rows(module, inputs, plan, bias=geometry.bias)
        group = layer.group
        base = base_of(output)
        watched, is_view = (output, False) if base is None else (base, True)
        place = (output.shape, output.stride(), output.storage_offset())

        def call_of(gradient: Tensor) -> Call:
            with torch.no_grad():
                gradient = as_plain(gradient)
                if is_view:
                    gradient = gradient.contiguous().as_strided(*place)
                gradients = layer.adapter.output_rows(module, gradient, plan)
                return make_call(geometry, rows, gradients, plan, first, group)

        def on_gradient(gradient: Tensor) -> None:
            if not layer.armed:
                return
            mc = options.fisher == "mc"
            with self.obstructing(layer):
                if mc and self._sampled_backward:
                    layer.ledger.draw(call_of(gradient))
                elif not self._begin_backward(layer, weight):
                    return
                elif not mc:
                    layer.ledger.add(running_backward(), call_of(gradient))
                layer.group_has_gradient = True

        on_gradient_of(watched, on_gradient)

    def _begin_backward(self, layer: TrackedLayer, weight: Tensor) -> bool:
        """Whether the running backward delivers a gradient of the weight; opens the ledger."""
        delivery = delivery_of(weight)
        if delivery is Delivery.NONE:
            return False
        task, ledger = running_backward(), layer.ledger
        if ledger.begin(task, weight):
            hook = None
            if delivery is Delivery.HANDED_OUT:
                hook = weight.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: ledger.hand_out(task, gradient)
                )

            def end() -> None:
                if hook is not None:
                    hook.remove()
                ledger.settle(task)

            when_backward_ends(end)
        return True

    def settle(self, layers: Iterable[TrackedLayer]) -> None:
        """Leaves the calls whose gradient is in ``.grad`` now; before a step reads them."""
        suspects: dict[torch.device, list[tuple[Ledger, Tensor]]] = defaultdict(list)
        for layer in layers:
            ledger = layer.ledger
            ledger.review()
            if (gradient := ledger.suspect) is not None:
                suspects[gradient.device].append((ledger, gradient))
            if layer.called and not ledger.read() and layer.weight.grad is not None:
                layer.obstacle = layer.obstacle or REPLACED
        for alike in suspects.values():
            moved = torch.stack([gradient.any() for _, gradient in alike]).tolist()
            for (ledger, _), moves in zip(alike, moved, strict=True):
                if not moves:
                    ledger.drop()

    def batch(
        self, layer: TrackedLayer, gradient_scale: float = 1.0
    ) -> tuple[FactorBatch, FactorBatch] | None:
        """Returns the statistics (A, G) of a layer since the last step, if it has any.

        Args:
            layer: The layer.
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        calls, one_hot = layer.ledger.read(), layer.geometry.one_hot
        if not calls or layer.obstacle:
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
    if inside_backward():
        # A checkpointed segment is being recomputed: no new micro-batch.
        return
    layer.ledger.review()
    if layer.group_has_gradient:
        layer.group, layer.group_has_gradient = layer.group + 1, False
