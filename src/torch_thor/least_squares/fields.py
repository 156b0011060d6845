"""A network as a field: its value, slopes and second derivatives at points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_thor.layers.jets import Jet, seeds
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Derivatives:
    """What a field is at N points, all of it with its graph.

    Attributes:
        value: ``[N, ...]``.
        gradient: Slopes along each axis, ``[N, axes, ...]``.
        laplacian: Weighted sum of the second derivatives along the axes, ``[N, ...]``.
    """

    value: Tensor
    gradient: Tensor
    laplacian: Tensor


def derivatives(
    field: Callable[[Any], Any], points: Tensor, second: Sequence[float] | None = None
) -> Derivatives:
    """Calls a network once on points, and has its derivatives with respect to them.

    One forward pass carries them along, in the place of nested ``torch.autograd.grad``; both give
    the same numbers. ``GaussNewton`` sees all that a layer's weight does only this way. The network
    may hold linear layers, elementwise functions, ``+ - * /``, ``cat`` and columns.

    Args:
        field: A network, or a function that calls some, of points ``[N, axes]``.
        points: Where, ``[N, axes]``.
        second: Weight of each axis' second derivative in ``laplacian``; ``None``: one each. For the
            heat equation over (t, x), ``second=(0, 1)``.

    Raises:
        InvalidOptionError: Where points are no matrix, or ``second`` is not one number an axis.
        NotImplementedError: Where the network uses a function that has no rule here.

    Example:
        >>> u = derivatives(net, points)
        >>> residual = u.laplacian - source
    """
    require("points", tuple(points.shape), points.dim() == 2, "a matrix, [N, axes]")
    axes = points.shape[1]
    chosen = (1.0,) * axes if second is None else tuple(float(one) for one in second)
    require("second", second, len(chosen) == axes, f"a number for each of the {axes} axes")
    weights = torch.tensor(chosen, dtype=points.dtype, device=points.device)
    outputs: object = field(seeds(points.detach(), weights))
    if not isinstance(outputs, Jet):
        raise TypeError(
            f"The field returned a {type(outputs).__name__} that does not depend on the points. "
            "It must return what it makes of them."
        )
    streams = outputs.streams
    return Derivatives(streams[:, 0], streams[:, 1:-1], streams[:, -1])
