"""A value with its derivatives at points, which one forward pass carries through a network.

A linear map acts on a value and on each derivative alike, so its call is one product over stacked
streams, and each stream is a position that shares the weight (Dangel et al. 2024). Only the value
meets the bias. Elementwise functions follow the chain rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from torch_thor.layers.elementwise import (
    ELEMENTWISE,
    bends_of,
    bends_of_cos,
    bends_of_sin,
    bends_of_tanh,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_thor.layers.elementwise import Bends

_CUT = "Points stay apart: a jet is cut, summed and squeezed along columns only: jet[:, columns]."


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
        jet, *rest = args or (None,)
        # A jet as an exponent would bend too.
        if func in ELEMENTWISE and isinstance(jet, Jet) and Jet not in map(type, rest):
            others = dict(kwargs or {})
            in_place = others.pop("inplace", False)
            found: Jet = jet.mapped(bends_of(lambda value: func(value, *rest, **others)))
            if in_place:
                jet.streams = found.streams
            return found
        raise NotImplementedError(_unknown(getattr(func, "__name__", func)))

    @property
    def value(self) -> Tensor:
        """The value, ``[N, ...]``."""
        return self.streams[:, 0]

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return torch.Size((len(self.streams), *self.streams.shape[2:]))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.streams.device

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.streams.dtype

    def __len__(self) -> int:
        return len(self.streams)

    def size(self, dim: int | None = None) -> Any:
        """The shape of the value, or its length along a dimension."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Dimensions of the value."""
        return self.streams.dim() - 1

    def unsqueeze(self, dim: int) -> Jet:
        """A dimension more, which is not the first."""
        return Jet(self.streams.unsqueeze(self._column(dim, self.dim() + 1)), self.weights)

    def squeeze(self, dim: int) -> Jet:
        """A dimension less, which is not the first."""
        return Jet(self.streams.squeeze(self._column(dim, self.dim())), self.weights)

    def sum(self, dim: int, keepdim: bool = False) -> Jet:  # noqa: FBT001, FBT002 (torch's own)
        """The sum along a dimension, which is not the first."""
        return Jet(self.streams.sum(self._column(dim, self.dim()), keepdim), self.weights)

    @staticmethod
    def _column(dim: int, dims: int) -> int:
        """The dimension of the streams that is one of the value's."""
        place = dim + dims if dim < 0 else dim
        if not 0 < place < dims:
            raise NotImplementedError(_CUT)
        return place + 1

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
        """The same derivatives of another value, which may be broader."""
        rest = self.streams[:, 1:].expand(len(value), -1, *value.shape[1:])
        return Jet(torch.cat([value.unsqueeze(1), rest], dim=1), self.weights)

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
        if point is Ellipsis and sum(one is not None for one in columns) < self.dim():
            return Jet(self.streams[(..., *columns)], self.weights)
        if point != slice(None):
            raise NotImplementedError(_CUT)
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
        return _multiply(self.mapped(bends_of(torch.reciprocal)), other)

    def __pow__(self, exponent: float) -> Jet:
        power: Jet = torch.pow(self, exponent)  # type: ignore[call-overload]
        return power

    def __matmul__(self, matrix: Tensor) -> Jet:
        _require_columns(self)
        return Jet(self.streams @ matrix, self.weights)

    def __getattr__(self, name: str) -> Any:
        """Methods of tensors, as ``jet.sin()``."""
        function: Any = getattr(torch, name, None)
        if function in ELEMENTWISE:
            return lambda *args, **kwargs: function(self, *args, **kwargs)
        raise AttributeError(_unknown(name))


def seeds(points: Tensor, weights: Tensor) -> Jet:
    """The points ``[N, axes]`` as functions of themselves."""
    samples, axes = points.shape
    slopes = torch.eye(axes, dtype=points.dtype, device=points.device).expand(samples, axes, axes)
    parts = [points.unsqueeze(1), slopes, points.new_zeros(samples, 1, axes)]
    return Jet(torch.cat(parts, dim=1), weights)


def streams_of(seen: Tensor | Jet) -> Tensor:
    """A tensor as it is; the streams of a jet, which are positions to a layer."""
    return seen.streams if isinstance(seen, Jet) else seen


def _unknown(name: object) -> str:
    return (
        f"derivatives() can't pass torch's {name}. It knows linear maps, elementwise functions, "
        "+ - * /, cat, stack, sum and columns; for others, differentiate by "
        "torch.autograd.grad(..., create_graph=True)."
    )


def _require_columns(jet: Jet) -> None:
    if jet.dim() < 2:
        raise NotImplementedError(f"A linear map needs columns, not shape {tuple(jet.shape)}.")


def _require_alike(jet: Jet, other: Any) -> None:
    """Streams stand between points and columns, so dimensions don't line up by themselves."""
    dims = other.dim() if isinstance(other, Jet | Tensor) else 0
    if dims > jet.dim() or (isinstance(other, Jet) and dims != jet.dim()):
        shapes = f"{tuple(jet.shape)} and {tuple(other.shape)}"
        raise NotImplementedError(
            f"derivatives() can't join shapes {shapes}. Give both the same dimensions, as by "
            "u[:, 0] or u.unsqueeze(-1)."
        )


def _linear(inputs: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    _require_columns(inputs)
    jet = Jet(functional.linear(inputs.streams, weight), inputs.weights)
    # Added to a slice: no second pass over the other streams.
    return jet if bias is None else jet.with_value(jet.value + bias)


def _add(one: Any, other: Any, *, alpha: float = 1) -> Jet:
    other = other if alpha == 1 else alpha * other
    jet, added = (one, other) if isinstance(one, Jet) else (other, one)
    _require_alike(jet, added)
    if isinstance(added, Jet):
        return Jet(jet.streams + added.streams, jet.weights)
    return jet.with_value(jet.value + added)


def _subtract(one: Any, other: Any, *, alpha: float = 1) -> Jet:
    return _add(one, other, alpha=-alpha)


def _multiply(one: Any, other: Any) -> Jet:
    jet, factor = (one, other) if isinstance(one, Jet) else (other, one)
    _require_alike(jet, factor)
    if isinstance(factor, Jet):
        return jet.times(factor)
    if isinstance(factor, Tensor) and factor.dim() == jet.dim():
        factor = factor.unsqueeze(1)  # the same for each stream of a point
    return Jet(jet.streams * factor, jet.weights)


def _divide(one: Any, other: Any) -> Jet:
    return _multiply(one, 1 / other)


def _concatenate(parts: list[Any] | tuple[Any, ...], dim: int = 0) -> Jet:
    like = next(part for part in parts if isinstance(part, Jet))
    if dim not in (-1, like.dim() - 1) or like.dim() < 2:
        raise NotImplementedError("Jets are joined along their last dimension only: cat(dim=-1).")
    streams = [
        part.streams if isinstance(part, Jet) else _constant(part, like.streams) for part in parts
    ]
    return Jet(torch.cat(streams, dim=-1), like.weights)


def _constant(value: Tensor, like: Tensor) -> Tensor:
    """The streams of what does not depend on the points."""
    rest = value.new_zeros(len(value), like.shape[1] - 1, *value.shape[1:])
    return torch.cat([value.unsqueeze(1), rest], dim=1)


def _stack(parts: list[Any] | tuple[Any, ...], dim: int = 0) -> Jet:
    return _concatenate([part.unsqueeze(-1) for part in parts], dim)


def _with(bends: Callable[[Tensor], Bends]) -> Callable[..., Jet]:
    return lambda jet, **_: jet.mapped(bends)


RULES: dict[Any, Callable[..., Jet]] = {
    functional.linear: _linear,
    **dict.fromkeys([torch.cat, torch.concat], _concatenate),
    torch.stack: _stack,
    torch.sum: Jet.sum,
    torch.matmul: Jet.__matmul__,
    **dict.fromkeys([torch.tanh, Tensor.tanh], _with(bends_of_tanh)),
    **dict.fromkeys([torch.sin, Tensor.sin], _with(bends_of_sin)),
    **dict.fromkeys([torch.cos, Tensor.cos], _with(bends_of_cos)),
    **dict.fromkeys([torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__], _add),
    **dict.fromkeys([torch.sub, Tensor.sub, Tensor.__sub__], _subtract),
    **dict.fromkeys([torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__], _multiply),
    **dict.fromkeys([torch.div, Tensor.div, Tensor.__truediv__], _divide),
}
