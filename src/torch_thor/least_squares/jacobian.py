"""The Jacobian of residuals, row by row, from the calls of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.capture.autograd import as_plain, is_transformed
from torch_thor.layers import read_matrices
from torch_thor.layers.jets import Jet, leave_bias_to_values, streams_of
from torch_thor.layers.rows import RowPlan

if TYPE_CHECKING:
    from torch.autograd.graph import GradientEdge

    from torch_thor.capture.hooks import Seen
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.least_squares.residuals import Terms


@dataclass(frozen=True)
class RecordedCall:
    """A call of a layer, with the place in the graph where its output's gradient arrives."""

    layer: TrackedLayer
    inputs: Tensor  # rows of a, [k, N·T, columns]
    output: GradientEdge
    plan: RowPlan
    first: int  # matrix of the layer

    def rows(self, gradient: Tensor) -> Tensor:
        """Each sample's own gradient of the matrices that took part, ``[N, k·out·columns]``."""
        adapter, plan = self.layer.adapter, self.plan
        gradient = adapter.samples_first(gradient)
        slopes = adapter.output_rows(self.layer.module, gradient, plan)
        apart = (-1, plan.samples, plan.positions)
        slopes = slopes.reshape(*apart, slopes.shape[-1]).mT
        own = slopes @ self.inputs.reshape(*apart, self.inputs.shape[-1])
        return own.transpose(0, 1).flatten(1)


class CallRecorder:
    """Hears of the layers' calls while it is on.

    Attributes:
        calls: Those since it was switched on.
        turns: No steps are counted: another optimizer beside it is none of its business.
    """

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []
        self.turns = 0
        self.is_on = False

    def start(self) -> None:
        """Forgets what it has, and listens."""
        self.calls, self.is_on = [], True

    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Seen, output: Seen, first: int = 0
    ) -> None:
        """Takes the input rows."""
        streams = streams_of(output)
        if not self.is_on or is_transformed(streams) or not streams.requires_grad:
            return
        adapter, module, bias = layer.adapter, layer.module, layer.geometry.bias
        with torch.no_grad():
            turned = adapter.samples_first(as_plain(streams_of(inputs)))
            out = adapter.samples_first(streams)
            shape = tuple(out.shape)
            plan = RowPlan(*adapter.call_shape(module, turned, out), output_shape=shape)
            rows = adapter.input_rows(module, turned, plan, bias=bias)
            if isinstance(inputs, Jet) and bias:
                leave_bias_to_values(rows, plan)
        edge = torch.autograd.graph.get_gradient_edge(streams)
        self.calls.append(RecordedCall(layer, rows, edge, plan, first))


class Coordinates:
    """All trained parameters as one vector: the layers' matrices, then each other one.

    Args:
        layers: The layers.
        others: Parameters of none of them.
    """

    def __init__(self, layers: Sequence[TrackedLayer], others: Sequence[nn.Parameter]) -> None:
        self.layers, self.others = tuple(layers), tuple(others)
        self.place: dict[TrackedLayer, slice] = {}
        at = 0
        for layer in layers:
            g = layer.geometry
            self.place[layer] = slice(at, at + g.matrices * g.outputs * g.columns)
            at = self.place[layer].stop
        self.in_layers = at
        self.size = at + sum(p.numel() for p in others)

    def split(self, vector: Tensor) -> dict[nn.Parameter, Tensor]:
        """The vector as a tensor for each parameter."""
        found: dict[nn.Parameter, Tensor] = {}
        for layer, place in self.place.items():
            g = layer.geometry
            matrices = vector[place].view(g.matrices, g.outputs, g.columns)
            weight, bias = read_matrices(g, matrices, layer.weight)
            found[layer.weight] = weight
            if layer.bias is not None and bias is not None:
                found[layer.bias] = bias
        parts = vector[self.in_layers :].split([p.numel() for p in self.others])
        found.update((p, part.view_as(p)) for p, part in zip(self.others, parts, strict=True))
        return found


def rows_of(terms: Terms, calls: Sequence[RecordedCall], where: Coordinates) -> Tensor:
    """The Jacobian of scaled residuals by the layers' matrices, ``[n, size]``; zeros for others.

    A row of a term must come from the same row of the calls behind it, and from no other.

    Raises:
        ValueError: Where calls behind a term have another number of rows.
    """
    total = sum(term.numel() for term in terms.scaled)
    matrix = terms.scaled[0].new_zeros(total, where.size)
    edges = [call.output for call in calls]
    at = 0
    for number, column in _columns(terms):
        into = matrix[at : at + len(column)]
        at += len(column)
        slopes = torch.autograd.grad(column.sum(), edges, retain_graph=True, allow_unused=True)
        for call, slope in zip(calls, slopes, strict=True):
            if slope is None:
                continue
            if call.plan.samples != len(column):
                _refuse_mixture(number, len(column), call, slope)
                continue
            own = call.rows(slope)
            geometry = call.layer.geometry
            start = where.place[call.layer].start
            start += call.first * geometry.outputs * geometry.columns
            into[:, start : start + own.shape[1]] += own
    return matrix


def _columns(terms: Terms) -> Iterator[tuple[int, Tensor]]:
    for number, term in enumerate(terms.scaled):
        for column in term.unbind(1):
            yield number, column


def _refuse_mixture(number: int, rows: int, call: RecordedCall, slope: Tensor) -> None:
    """A call that a term has nothing to do with may have any number of rows."""
    if bool(slope.any()):
        raise ValueError(
            f"Term {number} of the residuals has {rows} rows, but came from a call of layer "
            f"{call.layer.name!r} with {call.plan.samples}. Call the network once for each term, "
            "on that term's own points, or use curvature='kronecker'."
        )
