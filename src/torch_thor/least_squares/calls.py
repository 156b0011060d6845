"""Calls of layers while a closure runs, for the gradients of each row of its residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.capture.autograd import as_plain, is_transformed
from torch_thor.layers.jets import Jet, streams_of
from torch_thor.layers.rows import RowPlan, leave_bias_to_values

if TYPE_CHECKING:
    from torch.autograd.graph import GradientEdge

    from torch_thor.capture.hooks import Seen
    from torch_thor.capture.tracked import TrackedLayer


@dataclass(frozen=True)
class RecordedCall:
    """A call of a layer, with the place in the graph where its output's gradient arrives.

    Args:
        layer: The layer.
        inputs: Rows of a, ``[k, N·T, columns]``.
        output: Where the gradient arrives.
        plan: N samples of T positions.
        first: The first of the layer's matrices that took part.
        dtype: Type that it was computed in.
    """

    layer: TrackedLayer
    inputs: Tensor
    output: GradientEdge
    plan: RowPlan
    first: int
    dtype: torch.dtype

    def sides(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a and g, ``[k, N, T, columns]`` and ``[k, N, T, out]``, zeros for other matrices.

        Args:
            gradient: Of the call's output.
        """
        adapter, plan = self.layer.adapter, self.plan
        slopes = adapter.output_rows(self.layer.module, adapter.samples_first(gradient), plan)
        missing = self.layer.geometry.matrices - len(slopes)
        if missing:
            around = (self.first, missing - self.first)
            slopes = torch.nn.functional.pad(slopes, (0, 0, 0, 0, *around))
        inputs = self.inputs.expand(len(slopes), *self.inputs.shape[1:])
        apart = (-1, plan.samples, plan.positions)
        return (
            inputs.reshape(*apart, inputs.shape[-1]),
            slopes.reshape(*apart, slopes.shape[-1]),
        )


class CallRecorder:
    """Hears of the layers' calls while it is on.

    Attributes:
        calls: Those since it was started.
        turns: Steps that it has a say in, which no other optimizer has to know of.
        is_on: Whether it listens.
    """

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []
        self.turns = 0
        self.is_on = False

    def start(self) -> None:
        """Forgets what it has, and listens."""
        self.calls, self.is_on = [], True

    def stop(self) -> list[RecordedCall]:
        """Listens no more; returns the calls."""
        calls, self.calls, self.is_on = self.calls, [], False
        return calls

    @torch.no_grad()
    def on_forward(
        self,
        layer: TrackedLayer,
        weight: Tensor,  # noqa: ARG002 (a listener's signature)
        inputs: Seen,
        output: Seen,
        first: int = 0,
    ) -> None:
        """Takes the input rows, and the place of the output in the graph."""
        streams = streams_of(output)
        if not self.is_on or is_transformed(streams) or not streams.requires_grad:
            return
        adapter, bias = layer.adapter, layer.geometry.bias
        turned = adapter.samples_first(as_plain(streams_of(inputs)))
        out = adapter.samples_first(streams)
        shape = adapter.call_shape(layer.module, turned, out)
        plan = RowPlan(*shape, output_shape=tuple(out.shape))
        rows = adapter.input_rows(layer.module, turned, plan, bias=bias)
        if isinstance(inputs, Jet) and bias:
            leave_bias_to_values(rows, plan, inputs.streams.shape[1])
        edge = torch.autograd.graph.get_gradient_edge(streams)
        self.calls.append(RecordedCall(layer, rows, edge, plan, first, _computed_in(streams)))


def _computed_in(output: Tensor) -> torch.dtype:
    """Under autocast derivatives may come back in float32, with what has been lost."""
    kind = output.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else output.dtype
