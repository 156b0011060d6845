"""A call between its forward and its backward: its input rows wait for their output gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from torch_thor.capture.autograd import as_plain, base_of
from torch_thor.capture.calls import make_call
from torch_thor.capture.padding import counting_rows, kept_rows, weighed, without
from torch_thor.layers.rows import plan_rows

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.capture.calls import Call
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.layers.rows import RowPlan


@dataclass(frozen=True)
class CallRules:
    """Which rows of a call are taken.

    Args:
        budget: Most rows of a call; ``None`` takes all.
        one_hot_budget: The same of layers with one-hot inputs.
        reduce: Whether positions are averaged, see ``Statistics``.
        seed: Seed of the choice.
        mask: True where a position counts, ``[N, T]``.
    """

    budget: int | None
    one_hot_budget: int | None
    reduce: bool
    seed: int
    mask: Tensor | None


@dataclass(frozen=True, eq=False, slots=False)
class PendingCall:
    """A call whose output gradient has not arrived.

    Args:
        layer: The layer.
        rows: Its input rows, as the adapter returns them.
        plan: The rows that were taken.
        first: The first matrix of the layer that took part.
        group: Number of the forward pass.
        place: Shape, strides and offset of the output in its base, where it is a view.
        has_padding: Whether some of its positions may be padding.
        kept: Which of the taken rows a mask leaves in.
        kept_of_all: Which of all rows it leaves in.
        is_weighed: Whether a mask weighs its positions.
    """

    layer: TrackedLayer
    rows: Tensor
    plan: RowPlan
    first: int
    group: int
    place: tuple[torch.Size, tuple[int, ...], int] | None
    has_padding: bool
    kept: Tensor | None
    kept_of_all: Tensor | None
    is_weighed: bool

    def merge(self, call: Call, more: Call) -> None:
        """Adds the gradients of another backward through the same forward to a call that counts."""
        call.gradients = call.gradients + more.gradients
        if call.counted is not None and more.counted is not None:
            own = more.counted if more.inputs.dim() == 2 else more.counted.unsqueeze(-1)
            call.inputs = torch.where(own, more.inputs, call.inputs)
            call.counted = call.counted | more.counted

    def watched(self, output: Tensor) -> Tensor:
        """The tensor whose gradient completes the call."""
        base = None if self.place is None else base_of(output)
        return output if base is None else base

    @torch.no_grad()
    def complete(self, gradient: Tensor) -> Call:
        """Joins the gradient's rows to the input's."""
        layer, plan = self.layer, self.plan
        gradient = as_plain(gradient)
        if self.place is not None:
            gradient = gradient.contiguous().as_strided(*self.place)
        gradient = layer.adapter.samples_first(gradient)
        rows, gradients = self.rows, layer.adapter.output_rows(layer.module, gradient, plan)
        counting: Tensor | None = None
        if self.has_padding:
            counting = counting_rows(gradients, self.kept)
            if self.kept is not None:
                gradients = without(gradients, counting)
            if layer.geometry.one_hot:  # all of its rows were taken
                every = gradient.reshape(1, plan.samples * plan.positions, -1)
                counting = counting_rows(every, self.kept_of_all)
            rows = without(rows, counting)
        call = make_call(layer.geometry, rows, gradients, plan, self.first, self.group)
        call.counted = counting
        return call


@torch.no_grad()
def begin_call(
    rules: CallRules, layer: TrackedLayer, inputs: Tensor, output: Tensor, first: int
) -> PendingCall:
    """Takes the input rows of a call, so that later changes of the input don't reach them.

    Args:
        rules: Which rows are taken.
        layer: The layer.
        inputs: Input of the call, outside the graph.
        output: Output of the call.
        first: The first matrix of the layer that took part in the call.
    """
    module, geometry, adapter = layer.module, layer.geometry, layer.adapter
    # Means of one-hot rows are no longer one-hot, so these are always expanded.
    reduce = geometry.unit_wise or (rules.reduce and not geometry.one_hot)
    inputs, turned = adapter.samples_first(inputs), adapter.samples_first(output)
    samples, positions = adapter.call_shape(module, inputs, turned)
    budget = rules.one_hot_budget if geometry.one_hot else rules.budget
    chosen = plan_rows(samples, positions, budget, reduce=reduce, seed=rules.seed)
    plan = replace(chosen, output_shape=tuple(turned.shape))
    tokens = adapter.has_tokens and positions > 1 and not geometry.unit_wise
    mask = rules.mask if tokens else None
    weighs = reduce and mask is not None and mask.shape == inputs.shape[:-1]
    if weighs and mask is not None:
        inputs = weighed(inputs, mask)
    place = None
    if base_of(output) is not None:
        place = (output.shape, output.stride(), int(output.storage_offset()))
    return PendingCall(
        layer,
        adapter.input_rows(module, inputs, plan, bias=geometry.bias),
        plan,
        first,
        layer.group,
        place,
        tokens and not reduce,
        kept_rows(mask, plan),
        kept_rows(mask, replace(plan, index=None)),
        weighs,
    )
