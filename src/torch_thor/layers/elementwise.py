"""Elementwise functions with their first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Unary: TypeAlias = Callable[[Tensor], Tensor]
# Of a value: the function's own, its first and its second derivative.
Bends: TypeAlias = tuple[Tensor, Tensor, Tensor]

ELEMENTWISE: frozenset[Any] = frozenset(
    [
        *(torch.exp, torch.sigmoid, torch.square, torch.sqrt, torch.log, torch.pow, torch.sinh),
        *(torch.cosh, torch.erf, torch.reciprocal, torch.atan, torch.asinh, torch.relu, torch.abs),
        *(torch.tan, torch.rsqrt, torch.log1p, torch.expm1, torch.neg, torch.clamp, torch.sinc),
        *(functional.relu, functional.elu, functional.celu, functional.selu, functional.gelu),
        *(functional.silu, functional.mish, functional.softplus, functional.leaky_relu),
        *(functional.logsigmoid, functional.softsign, functional.tanhshrink, functional.hardtanh),
        *(functional.relu6, torch.tanh, torch.sin, torch.cos),
    ]
)


def bends_of_tanh(value: Tensor) -> Bends:
    """Derivatives of tanh, without a graph of a graph."""
    tanh = torch.tanh(value)
    slope = 1 - tanh * tanh
    return tanh, slope, -2 * tanh * slope


def bends_of_sin(value: Tensor) -> Bends:
    """Derivatives of the sine."""
    sin = torch.sin(value)
    return sin, torch.cos(value), -sin


def bends_of_cos(value: Tensor) -> Bends:
    """Derivatives of the cosine."""
    cos = torch.cos(value)
    return cos, -torch.sin(value), -cos


def bends_of(function: Unary) -> Callable[[Tensor], Bends]:
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
