"""What a layer type has to say about itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_thor.layers.geometry import Geometry
    from torch_thor.layers.rows import RowPlan

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LayerAdapter(ABC, Generic[ModuleT]):
    """Geometry of one layer type; holds no state.

    An adapter turns the input and the output gradient of a call into rows of the
    canonical statistics, a ``[k, r, columns]`` and g ``[k, r, out]``, such that the
    gradient of the weight's matrices is Σ_rows g aᵀ.

    The module's parameters ``weight`` and ``bias`` are what is preconditioned.

    Attributes:
        by_default: Whether layers of this type are preconditioned unless excluded, or only
            where the user includes them.
        inside_function: Whether its calls happen where no module hook fires.
        has_tokens: Whether a position of several is a token, which may be padding.
        sums_rows: Whether the gradient of ``weight`` is that sum, or the sum is of what the weight
            makes: then factors stand for it, and what is exact leaves it out.
    """

    by_default: bool = True
    inside_function: bool = False
    has_tokens: bool = False
    sums_rows: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of a model share it: it holds no state, and layers are told apart by theirs."""
        return self

    @abstractmethod
    def geometry(self, module: ModuleT, *, bias: bool) -> Geometry:
        """Returns the matrix shape; ``bias`` says whether the bias is trained."""

    @abstractmethod
    def call_shape(self, module: ModuleT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """Returns (samples N, shared positions T) of one call."""

    @abstractmethod
    def input_rows(self, module: ModuleT, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """Returns a as ``[k, r, columns]``."""

    @abstractmethod
    def output_rows(self, module: ModuleT, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Returns g as ``[k, r, out]``."""

    def samples_first(self, tensor: Tensor) -> Tensor:
        """Returns inputs, outputs or gradients of a call with the samples' dimension in front."""
        return tensor

    def weight(self, module: ModuleT) -> Any:
        """Returns what stands in the weight's place now: functional calls and sharding swap it."""
        return module.weight

    def refusal(self, module: ModuleT) -> str:
        """Says why this module has to train by the base rule; empty where it need not."""
        return ""


@dataclass(frozen=True)
class Part:
    """A weight of a module, and what is known about it.

    Args:
        name: Name below the module's; empty where the module has one weight only.
        adapter: Geometry.
        weight: The weight, where it is a plain parameter.
        bias: Its bias, where it has one that is a plain parameter.
    """

    name: str
    adapter: LayerAdapter[Any]
    weight: nn.Parameter | None
    bias: nn.Parameter | None


def with_ones(rows: Tensor, *, bias: bool) -> Tensor:
    """Appends the bias' column of ones to rows ``[..., d]`` where there is a bias."""
    return nn.functional.pad(rows, (0, 1), value=1.0) if bias else rows


def leading_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Samples and positions of leading dimensions ``(N, ...)``; none count as one sample."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
