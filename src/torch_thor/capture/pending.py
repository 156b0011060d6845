"""A call from its forward, which takes the input rows, until its output gradient has arrived.

A position of a token layer whose output gradient is exactly zero adds nothing to the Fisher; it is
padding, and its activation is nobody's and would only dilute A. A position of a convolution may
have a zero gradient for other reasons (pooling, dead units), so those count as ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from torch_thor.capture.autograd import (
    Delivery,
    as_plain,
    base_of,
    delivery_of,
    on_gradient_of,
    running_backward,
    when_backward_ends,
)
from torch_thor.capture.calls import Call
from torch_thor.layers.geometry import DENSE
from torch_thor.layers.rows import leave_bias_to_values, plan_rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.fisher import Draw
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.layers import Geometry
    from torch_thor.layers.rows import RowPlan
    from torch_thor.options.curvature import Statistics


@dataclass
class Sampling:
    """Whether labels are drawn (``fisher="mc"``), and whether drawn ones run backward now.

    Args:
        wanted: Whether they are.
        running: Whether they do.
        draw: What their loss is a sum over; ``None``: it reduces as the training loss does.
    """

    wanted: bool
    running: bool = False
    draw: Draw | None = None


@dataclass(frozen=True)
class CallRules:
    """Which rows of a call are taken.

    Args:
        options: Row budget, weight sharing.
        matched: Whether a layer that counts all inputs needs the gradients of all of them.
        sampling: Which backwards count.
        seed: Seed of the row choice.
        mask: True where a position counts, ``[N, T]``.
        streams: What a sample's positions are: a value and its derivatives (``Jet``); 1: no such.
    """

    options: Statistics
    matched: bool
    sampling: Sampling
    seed: int = 0
    mask: Tensor | None = None
    streams: int = 1

    def plan(self, geometry: Geometry, samples: int, positions: int) -> RowPlan:
        """Chooses the rows of a call."""
        structure, options = geometry.structure, self.options
        budget = None if self.matched and structure.counts_all_inputs else options.rows
        reduce = structure.reduces(asked=options.weight_sharing == "reduce")
        reduce = reduce and self.streams == 1  # which no mean mixes with a value
        return plan_rows(samples, positions, budget, reduce=reduce, seed=self.seed)


class PendingCall:
    """A call whose output gradient has not arrived; hangs on the call's graph, and lives as long.

    Its input rows are taken at once, so that later changes of the input don't reach them.

    Args:
        layer: The layer.
        weight: The weight that it used.
        rules: Which rows are taken.
        inputs: Input of the call, outside the graph.
        output: Output of the call.
        first: The first matrix of the layer that took part.
    """

    def __init__(
        self,
        layer: TrackedLayer,
        weight: Tensor,
        rules: CallRules,
        inputs: Tensor,
        output: Tensor,
        first: int,
    ) -> None:
        self._layer, self._weight, self._sampling = layer, weight, rules.sampling
        self._first, self._group = first, layer.group
        self._call: Call | None = None
        self._delivered = False
        self._take_rows(rules, inputs, output)
        base = base_of(output)
        # Where a view's gradient is taken from its base: the place of the view in it.
        place = (output.shape, output.stride(), int(output.storage_offset()))
        self._place = None if base is None else place
        on_gradient_of(output if base is None else base, self._on_gradient)

    @torch.no_grad()
    def _take_rows(self, rules: CallRules, inputs: Tensor, output: Tensor) -> None:
        layer = self._layer
        geometry, adapter, module = layer.geometry, layer.adapter, layer.module
        inputs, turned = adapter.samples_first(inputs), adapter.samples_first(output)
        plan = rules.plan(geometry, *adapter.call_shape(module, inputs, turned))
        self._plan = plan = replace(plan, output_shape=tuple(turned.shape))
        tokens = adapter.has_tokens and plan.positions > 1 and geometry.structure.is_factored
        tokens = tokens and rules.streams == 1
        mask = rules.mask if tokens else None
        self._may_be_padded = tokens and not plan.reduce
        self._kept, self._kept_of_all = _kept(mask, plan), _kept(mask, replace(plan, index=None))
        self.fits_mask = self._kept_of_all is not None
        if plan.reduce and mask is not None and mask.shape == inputs.shape[:-1]:
            inputs, self.fits_mask = _weighed(inputs, mask), True
        self._rows = adapter.input_rows(module, inputs, plan, bias=geometry.bias)
        if rules.streams > 1 and geometry.bias:
            leave_bias_to_values(self._rows, plan, rules.streams)

    def _on_gradient(self, gradient: Tensor) -> None:
        """Takes the gradient of the output in, which one backward or several bring."""
        layer = self._layer
        if not layer.armed:
            return
        with layer.obstructed():
            if self._sampling.wanted and self._sampling.running:
                self._draw(gradient)
            elif self._begin_backward():
                self._deliver(gradient)
            else:
                return
            layer.group_has_gradient = True

    def _draw(self, gradient: Tensor) -> None:
        call, ledger = self._complete(gradient), self._layer.ledger
        call.draw = self._sampling.draw
        if self._delivered:
            ledger.add_late(call)
        else:
            ledger.draw(call, self)

    def _deliver(self, gradient: Tensor) -> None:
        ledger, task = self._layer.ledger, running_backward()
        if self._sampling.wanted:
            self._delivered = True
            ledger.bind(task, self)
            return
        call = self._complete(gradient)
        if self._call is not None and ledger.holds(self._call):
            # The same rows once more: the gradient that counts is the sum.
            self._call.merge(call)
            return
        self._call = call
        ledger.add(task, call)

    def _begin_backward(self) -> bool:
        """Whether the running backward delivers a gradient of the weight; opens the ledger."""
        delivery, weight = delivery_of(self._weight), self._weight
        if delivery is Delivery.NONE:
            return False
        task, ledger = running_backward(), self._layer.ledger
        if not ledger.is_open(task):
            hook: RemovableHandle | None = None
            if delivery is Delivery.HANDED_OUT:
                hook = weight.register_hook(lambda gradient: ledger.hand_out(task, gradient))
            ledger.begin(task, weight, hook)
            when_backward_ends(lambda: ledger.settle(task))
        return True

    @torch.no_grad()
    def _complete(self, gradient: Tensor) -> Call:
        """Joins the gradient's rows to the input's."""
        layer, plan, geometry = self._layer, self._plan, self._layer.geometry
        structure = geometry.structure
        gradient = as_plain(gradient)
        if self._place is not None:
            gradient = gradient.contiguous().as_strided(*self._place)
        gradient = layer.adapter.samples_first(gradient)
        rows, gradients = self._rows, layer.adapter.output_rows(layer.module, gradient, plan)
        counting: Tensor | None = None
        if self._may_be_padded:
            counting = _counting(gradients, self._kept)
            if self._kept is not None:
                gradients = DENSE.where(counting, gradients)
            if structure.counts_all_inputs:
                every = gradient.reshape(1, plan.samples * plan.positions, -1)
                counting = _counting(every, self._kept_of_all)
            rows = structure.where(counting, rows)
        rows, gradients = structure.call_rows(geometry, rows, gradients, plan)
        present = len(gradients)
        rows = rows.expand(present, *rows.shape[1:])
        covers = None
        if present < geometry.matrices:
            covers = range(self._first, self._first + present)
            rows, gradients = (_spread(one, covers, geometry.matrices) for one in (rows, gradients))
        return Call(geometry, rows, gradients, plan, self._group, covers, counting)


def _spread(rows: Tensor, covers: range, matrices: int) -> Tensor:
    """Rows of some of the matrices as those of all, zeros elsewhere."""
    spread = rows.new_zeros(matrices, *rows.shape[1:])
    spread[covers.start : covers.stop] = rows
    return spread


def _kept(mask: Tensor | None, plan: RowPlan) -> Tensor | None:
    """Which of the taken rows a mask leaves in; ``None`` where it is not about this call."""
    if mask is None or tuple(mask.shape) != (plan.samples, plan.positions):
        return None
    flat = mask.flatten()
    return flat if plan.index is None else flat[plan.index.to(flat.device)]


def _counting(gradients: Tensor, kept: Tensor | None) -> Tensor:
    """Which rows ``[k, r, out]`` have a gradient, unless none has one, and are kept: ``[r]``."""
    alive = (gradients != 0).any(2).any(0)
    alive = alive | ~alive.any()
    return alive if kept is None else alive & kept.to(alive.device)


def _weighed(inputs: Tensor, mask: Tensor) -> Tensor:
    """Inputs ``[N, T, d]`` whose mean over positions is the mean over those that count."""
    weights = mask.to(inputs.device, inputs.dtype)
    shares = weights.sum(1, keepdim=True).clamp_min(1.0) / mask.shape[1]
    return inputs * (weights / shares).unsqueeze(-1)
