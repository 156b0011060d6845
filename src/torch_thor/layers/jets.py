"""A value with its derivatives at points, which one forward pass carries through a network.

A linear map acts on a value and on each derivative alike, so its call is one product over stacked
streams, and each stream is a position that shares the weight (Dangel et al. 2024). Only the value
meets the bias. Elementwise functions follow the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan

Unary: TypeAlias = Callable[[Tensor], Tensor]
# Of a value: the function's own, its first and its second derivative.
Bends: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Jet:
    """Value, slopes along each axis and a weighted sum of second derivatives, ``[N, S, ...]``.

    torch's linear, elementwise and arithmetic functions take it in the place of a tensor.

    Args:
        streams: S = 2 + axes streams of each point: value, slopes, second derivatives.
        weights: Weight of each axis in the sum of second derivatives, ``[axes]``.
    """

    def __init__(self, streams: Tensor, weights: Tensor) -> None:
        self.streams, self.weights = streams, weights

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the rule of a function."""
        rule = RULES.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        if func in ELEMENTWISE:
            jet, *rest = args
            return jet.mapped(_bends_of(lambda value: func(value, *rest, **(kwargs or {}))))
        name = getattr(func, "__name__", func)
        raise NotImplementedError(
            f"derivatives() can't pass torch's {name}. It knows linear maps, elementwise "
            "functions, + - * /, cat and columns; for others, differentiate by "
            "torch.autograd.grad(..., create_graph=True)."
        )

    @property
    def value(self) -> Tensor:
        """The value, ``[N, ...]``."""
        return self.streams[:, 0]

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return torch.Size((len(self.streams), *self.streams.shape[2:]))

    def dim(self) -> int:
        """Dimensions of the value."""
        return self.streams.dim() - 1

    def mapped(self, bends: Callable[[Tensor], Bends]) -> Jet:
        """Applies an elementwise function, given with its derivatives."""
        value, slope, bend = (one.unsqueeze(1) for one in bends(self.value))
        slopes, second = self.streams[:, 1:-1], self.streams[:, -1:]
        squares = self._weigh(slopes * slopes)
        streams = torch.cat([value, slope * slopes, slope * second + bend * squares], dim=1)
        return Jet(streams, self.weights)

    def _weigh(self, products: Tensor) -> Tensor:
        """Sums products over the axes with their weights: ``[N, axes, ...]`` to ``[N, 1, ...]``."""
        shape = (-1,) + (1,) * (products.dim() - 2)
        return (products * self.weights.view(shape)).sum(1, keepdim=True)

    def with_value(self, value: Tensor) -> Jet:
        """The same derivatives of another value."""
        return Jet(torch.cat([value.unsqueeze(1), self.streams[:, 1:]], dim=1), self.weights)

    def times(self, factor: Jet) -> Jet:
        """The product rule."""
        one, other = self.streams, factor.streams
        value, second = one[:, :1] * other[:, :1], one[:, :1] * other[:, -1:]
        slopes = one[:, :1] * other[:, 1:-1] + one[:, 1:-1] * other[:, :1]
        second = second + one[:, -1:] * other[:, :1]
        second = second + 2 * self._weigh(one[:, 1:-1] * other[:, 1:-1])
        return Jet(torch.cat([value, slopes, second], dim=1), self.weights)

    def __getitem__(self, key: Any) -> Jet:
        """Columns of the value, as ``jet[:, 0]`` or ``jet[..., 1:]``."""
        point, *columns = key if isinstance(key, tuple) else (key,)
        if point is Ellipsis:
            return Jet(self.streams[(..., *columns)], self.weights)
        if point != slice(None):
            raise NotImplementedError("A jet is cut along columns only: jet[:, columns].")
        return Jet(self.streams[(slice(None), slice(None), *columns)], self.weights)

    def __add__(self, other: Any) -> Jet:
        return _add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Jet:
        return _add(self, -other)

    def __rsub__(self, other: Any) -> Jet:
        return _add(-self, other)

    def __neg__(self) -> Jet:
        return Jet(-self.streams, self.weights)

    def __mul__(self, other: Any) -> Jet:
        return _multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Jet:
        return _multiply(self, 1 / other)

    def __rtruediv__(self, other: Any) -> Jet:
        return _multiply(self.mapped(_bends_of(torch.reciprocal)), other)

    def __pow__(self, exponent: float) -> Jet:
        power: Jet = torch.pow(self, exponent)  # type: ignore[call-overload]
        return power

    def __matmul__(self, matrix: Tensor) -> Jet:
        return Jet(self.streams @ matrix, self.weights)

    def __getattr__(self, name: str) -> Any:
        """Methods of tensors, as ``jet.sin()``."""
        function: Any = getattr(torch, name, None)
        if function in ELEMENTWISE:
            return lambda *args, **kwargs: function(self, *args, **kwargs)
        raise AttributeError(f"A jet has no {name!r}.")


def seeds(points: Tensor, weights: Tensor) -> Jet:
    """The points ``[N, axes]`` as functions of themselves."""
    samples, axes = points.shape
    slopes = torch.eye(axes, dtype=points.dtype, device=points.device).expand(samples, axes, axes)
    parts = [points.unsqueeze(1), slopes, points.new_zeros(samples, 1, axes)]
    return Jet(torch.cat(parts, dim=1), weights)


def streams_of(seen: Tensor | Jet) -> Tensor:
    """A tensor as it is; the streams of a jet, which are positions to a layer."""
    return seen.streams if isinstance(seen, Jet) else seen


def leave_bias_to_values(rows: Tensor, plan: RowPlan) -> None:
    """Clears the bias' column, the last of rows ``[k, r, columns]``, where they are derivatives."""
    _, positions = plan.coordinates(rows.device)
    rows[..., -1].masked_fill_(positions > 0, 0.0)


def _linear(inputs: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    jet = Jet(functional.linear(inputs.streams, weight), inputs.weights)
    # Added to a slice: no second pass over the other streams.
    return jet if bias is None else jet.with_value(jet.value + bias)


def _add(one: Any, other: Any) -> Jet:
    if isinstance(one, Jet) and isinstance(other, Jet):
        return Jet(one.streams + other.streams, one.weights)
    jet, constant = (one, other) if isinstance(one, Jet) else (other, one)
    return jet.with_value(jet.value + constant)


def _subtract(one: Any, other: Any) -> Jet:
    return _add(one, -other)


def _multiply(one: Any, other: Any) -> Jet:
    if isinstance(one, Jet) and isinstance(other, Jet):
        return one.times(other)
    jet, factor = (one, other) if isinstance(one, Jet) else (other, one)
    if isinstance(factor, Tensor) and factor.dim() == jet.dim():
        factor = factor.unsqueeze(1)  # the same for each stream of a point
    return Jet(jet.streams * factor, jet.weights)


def _divide(one: Any, other: Any) -> Jet:
    return _multiply(one, 1 / other)


def _concatenate(jets: list[Jet] | tuple[Jet, ...], dim: int = 0) -> Jet:
    if dim not in (-1, jets[0].dim() - 1) or jets[0].dim() < 2:
        raise NotImplementedError("Jets are joined along their last dimension only: cat(dim=-1).")
    return Jet(torch.cat([jet.streams for jet in jets], dim=-1), jets[0].weights)


def _tanh(value: Tensor) -> Bends:
    tanh = torch.tanh(value)
    slope = 1 - tanh * tanh
    return tanh, slope, -2 * tanh * slope


def _sin(value: Tensor) -> Bends:
    sin = torch.sin(value)
    return sin, torch.cos(value), -sin


def _cos(value: Tensor) -> Bends:
    cos = torch.cos(value)
    return cos, -torch.sin(value), -cos


def _bends_of(function: Unary) -> Callable[[Tensor], Bends]:
    """Derivatives of any elementwise function, by autograd."""

    @torch.enable_grad()
    def bends(value: Tensor) -> Bends:
        at = value if value.requires_grad else value.detach().requires_grad_()
        outputs = function(at)
        (slope,) = torch.autograd.grad(outputs.sum(), at, create_graph=True)
        if not slope.requires_grad:  # of a function that is linear in pieces
            return outputs, slope, torch.zeros_like(slope)
        (bend,) = torch.autograd.grad(slope.sum(), at, create_graph=True)
        return outputs, slope, bend

    return bends


def _with(bends: Callable[[Tensor], Bends]) -> Callable[..., Jet]:
    return lambda jet, **_: jet.mapped(bends)


ELEMENTWISE: frozenset[Any] = frozenset(
    [
        *(torch.exp, torch.sigmoid, torch.square, torch.sqrt, torch.log, torch.pow, torch.sinh),
        *(torch.cosh, torch.erf, torch.reciprocal, torch.atan, torch.asinh, torch.relu),
        *(functional.relu, functional.elu, functional.celu, functional.selu, functional.gelu),
        *(functional.silu, functional.mish, functional.softplus, functional.leaky_relu),
        *(functional.logsigmoid, functional.softsign, torch.tanh, torch.sin, torch.cos),
    ]
)
RULES: dict[Any, Callable[..., Jet]] = {
    functional.linear: _linear,
    torch.cat: _concatenate,
    **dict.fromkeys([torch.tanh, Tensor.tanh], _with(_tanh)),
    **dict.fromkeys([torch.sin, Tensor.sin], _with(_sin)),
    **dict.fromkeys([torch.cos, Tensor.cos], _with(_cos)),
    **dict.fromkeys([torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__], _add),
    **dict.fromkeys([torch.sub, Tensor.sub, Tensor.__sub__], _subtract),
    **dict.fromkeys([torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__], _multiply),
    **dict.fromkeys([torch.div, Tensor.div, Tensor.__truediv__], _divide),
}
