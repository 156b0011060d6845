"""Weight norm: a weight W = g V / ‖V‖ that is made of a direction and of a length a row."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.weight_norm import WeightNorm

from torch_thor.layers.adapter import LayerAdapter
from torch_thor.layers.shards import is_dtensor, unsharded_type

if TYPE_CHECKING:
    from torch_thor.layers.geometry import Geometry
    from torch_thor.layers.rows import RowPlan

_NOW = parametrizations._WeightNorm  # noqa: SLF001 (there is no public name)


class WeightNormAdapter(LayerAdapter[nn.Module]):
    """A layer's rows, for the direction V of its weight (Salimans and Kingma 2016).

    V's gradient is that of W times g / ‖V‖, but for its part along V, and V begins as W. So W's
    factors stand for V's.

    Args:
        plain: Adapter of the layer without weight norm.
    """

    sums_rows = False

    def __init__(self, plain: LayerAdapter[Any]) -> None:
        self._plain = plain
        self.by_default = plain.by_default
        self.inside_function = plain.inside_function
        self.has_tokens = plain.has_tokens

    def geometry(self, module: nn.Module, *, bias: bool) -> Geometry:
        """The layer's."""
        return self._plain.geometry(module, bias=bias)

    def call_shape(self, module: nn.Module, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The layer's."""
        return self._plain.call_shape(module, inputs, output)

    def input_rows(self, module: nn.Module, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """The layer's."""
        return self._plain.input_rows(module, inputs, plan, bias=bias)

    def output_rows(self, module: nn.Module, gradient: Tensor, plan: RowPlan) -> Tensor:
        """The layer's."""
        return self._plain.output_rows(module, gradient, plan)

    def samples_first(self, tensor: Tensor) -> Tensor:
        """The layer's."""
        return self._plain.samples_first(tensor)

    def weight(self, module: nn.Module) -> Any:
        """Returns what stands in V's place now."""
        return direction_of(module)

    def refusal(self, module: nn.Module) -> str:
        """Says so of vectors, and of shards, of which V's lengths would be those of some rows."""
        direction = direction_of(module)
        if direction.dim() < 2:
            return "weight norm of a vector"
        return "weight norm of a shard" if is_dtensor(direction) else self._plain.refusal(module)


weight_normed = cache(WeightNormAdapter)  # one for each, as layers are told apart by theirs


def direction_of(module: nn.Module) -> Any:
    """Returns V of a module whose weight is under weight norm, torch's old or new; else None."""
    if is_parametrized(module, "weight"):
        made: Any = module.parametrizations
        return made.weight.original1 if [*map(type, made.weight)] == [_NOW] else None
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 (where torch's own keeps it)
    if any(isinstance(hook, WeightNorm) and hook.name == "weight" for hook in hooks):
        return module.weight_v
    return None


def type_below(module: nn.Module) -> type[nn.Module]:
    """The class of a module before a parametrization put its own in front."""
    kind = unsharded_type(module)
    return kind.__mro__[1] if is_parametrized(module) else kind
