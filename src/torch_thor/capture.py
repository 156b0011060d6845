"""From hooks to statistics: which (a, g) pairs reached backward since the last step.

A forward hook takes the wanted rows of the input at once, so a later in-place change of
the activation can't reach them, and hangs a hook on the *output tensor*; when its
gradient arrives, the pair is complete. Output-tensor hooks survive in-place activations,
modules used twice and activation checkpointing; full backward hooks don't.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.factors import FactorBatch
from torch_thor.sampling import RowPlan, plan_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.hooks import RemovableHandle

    from torch_thor.layers import Geometry, LayerAdapter
    from torch_thor.options import Statistics


@dataclass(frozen=True)
class Call:
    """One forward call of a layer whose output gradient has arrived.

    Args:
        inputs: ``[k, r, columns]``.
        gradients: ``[k, r, out]``.
        plan: Rows that were taken.
        group: Calls of one forward pass share a number, micro-batches differ.
    """

    inputs: Tensor
    gradients: Tensor
    plan: RowPlan
    group: int


@dataclass(eq=False)
class TrackedLayer:
    """A module whose weight is preconditioned.

    Args:
        name: Qualified name of the module.
        module: The module.
        adapter: Geometry of its type.
        geometry: Shape of its weight as matrices.
        weight: Its trained weight.
        bias: Its trained bias, where it has one.
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
    adapter: LayerAdapter[nn.Module]
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

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight, and bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


class Capture:
    """Collects the calls of the layers that are armed.

    Args:
        options: Row budget, weight sharing, loss reduction.
    """

    def __init__(self, options: Statistics) -> None:
        """Starts without hooks."""
        self.options = options
        self.seed = 0
        self._handles: list[RemovableHandle] = []

    def attach(self, layers: Iterable[TrackedLayer]) -> None:
        """Registers one forward hook a layer."""
        for layer in layers:
            hook = _ForwardHook(self, layer)
            self._handles.append(
                layer.module.register_forward_hook(hook, with_kwargs=True, always_call=False)
            )

    def remove(self) -> None:
        """Takes every hook off the model again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def arm(self, layers: Iterable[TrackedLayer], wanted: set[TrackedLayer], seed: int) -> None:
        """Drops what was collected and says which layers count until the next step."""
        self.seed = seed
        for layer in layers:
            layer.armed = layer in wanted
            layer.calls.clear()
            layer.called = False
            layer.group, layer.group_has_gradient = 0, False

    def on_forward(self, layer: TrackedLayer, inputs: Tensor, output: Tensor) -> None:
        """Takes the input rows and waits for the gradient of the output."""
        with torch.no_grad():
            samples, positions = layer.adapter.call_shape(layer.module, inputs, output)
            plan = plan_rows(
                samples,
                positions,
                self.options.rows,
                reduce=self.options.weight_sharing == "reduce",
                seed=self.seed,
            )
            rows = layer.adapter.input_rows(
                layer.module, inputs.detach(), plan, bias=layer.geometry.bias
            )
        group = layer.group

        def on_gradient(gradient: Tensor) -> None:
            if not layer.armed:
                return
            with torch.no_grad():
                gradients = layer.adapter.output_rows(layer.module, gradient.detach(), plan)
            layer.calls.append(Call(rows, gradients, plan, group))
            layer.group_has_gradient = True

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

    def batch(
        self, layer: TrackedLayer, gradient_scale: float = 1.0
    ) -> tuple[FactorBatch, FactorBatch] | None:
        """Returns the statistics (A, G) of a layer since the last step, if it has any.

        Args:
            layer: The layer.
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        calls = layer.calls
        if not calls:
            return None
        samples: dict[int, int] = {}
        for call in calls:
            samples[call.group] = max(samples.get(call.group, 0), call.plan.samples)
        count = sum(samples.values())
        rows = sum(call.plan.rows for call in calls)
        terms = sum(call.plan.samples * call.plan.positions for call in calls)
        scale = {"mean": count, "positions_mean": terms, "sum": 1.0 / count}
        weights = tuple(call.plan.scale for call in calls)
        return (
            FactorBatch(tuple(call.inputs for call in calls), weights, 1.0 / rows),
            FactorBatch(
                tuple(call.gradients for call in calls),
                weights,
                scale[self.options.loss_reduction] / gradient_scale**2,
            ),
        )


def _inside_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


class _ForwardHook:
    """The hook on a module; holds its capture weakly and never travels with the model."""

    def __init__(self, capture: Capture, layer: TrackedLayer) -> None:
        self._capture = weakref.ref(capture)
        self._layer = weakref.ref(layer)

    def __call__(
        self,
        module: nn.Module,  # noqa: ARG002 (torch hands it over)
        args: tuple[object, ...],
        kwargs: dict[str, object],
        output: object,
    ) -> None:
        capture, layer = self._capture(), self._layer()
        if capture is None or layer is None or not layer.armed:
            return
        layer.called = True
        if layer.group_has_gradient and not _inside_backward():
            # A forward after a backward belongs to the next micro-batch, unless a
            # checkpointed segment is being recomputed.
            layer.group, layer.group_has_gradient = layer.group + 1, False
        if not torch.is_grad_enabled():
            return
        inputs = args[0] if args else next(iter(kwargs.values()))
        if (
            isinstance(inputs, Tensor)
            and isinstance(output, Tensor)
            and output.requires_grad
            and output.numel()
        ):
            capture.on_forward(layer, inputs, output)

    def __deepcopy__(self, memo: dict[int, object]) -> _InertHook:
        return _InertHook()

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        return (_InertHook, ())


class _InertHook:
    """What a copied or unpickled model carries in the place of a hook."""

    def __call__(self, *args: object) -> None:
        """Does nothing."""
