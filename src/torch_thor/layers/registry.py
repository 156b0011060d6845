"""Which adapter belongs to which layer type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from torch_thor.layers.adapter import LayerAdapter, Part
from torch_thor.layers.attention import attention_parts
from torch_thor.layers.conv import ConvAdapter, TransposedConvAdapter
from torch_thor.layers.linear import EmbeddingAdapter, LinearAdapter, TransposedLinearAdapter
from torch_thor.layers.norms import NORMS
from torch_thor.layers.shards import unsharded_type
from torch_thor.layers.weight_norm import direction_of, type_below, weight_normed
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

_ADAPTERS: dict[type[nn.Module], LayerAdapter[Any]] = {
    nn.Linear: LinearAdapter(),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvAdapter()),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConvAdapter()
    ),
    nn.Embedding: EmbeddingAdapter(),
    **NORMS,
}
# Types of libraries that are not imported for their sake.
_ADAPTERS_BY_NAME: dict[str, LayerAdapter[Any]] = {
    "transformers.pytorch_utils.Conv1D": TransposedLinearAdapter(),
}
_REASONS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.RNNBase, "a fused recurrent kernel hides its steps"),
    (ParametrizationList, "part of a parametrized weight"),
    (nn.EmbeddingBag, "a bag hides its tokens' gradients"),
)


def register_adapter(module_type: type[nn.Module], adapter: LayerAdapter[Any]) -> None:
    """Teaches every optimizer that is built from now on how a layer type works.

    Args:
        module_type: Class of the layer. Subclasses are not included: they may change what
            their forward does with the weight.
        adapter: Geometry of the type; replaces the one that was there.

    Raises:
        InvalidOptionError: If ``module_type`` is no module class or ``adapter`` no adapter.
    """
    kind: object = module_type
    valid = isinstance(kind, type) and issubclass(kind, nn.Module)
    require("module_type", module_type, valid, "a subclass of torch.nn.Module")
    require("adapter", adapter, isinstance(adapter, LayerAdapter), "a LayerAdapter instance")
    _ADAPTERS[module_type] = adapter


def adapter_for(module: nn.Module) -> LayerAdapter[Any] | None:
    """Returns the adapter of exactly this module type, or ``None``; a subclass is another."""
    is_normed = direction_of(module) is not None
    kind = type_below(module) if is_normed else unsharded_type(module)
    plain = _ADAPTERS.get(kind)
    plain = plain or _ADAPTERS_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
    return weight_normed(plain) if is_normed and plain is not None else plain


def parts_of(module: nn.Module) -> Sequence[Part]:
    """Returns the weights of a module that have an adapter; none for an unknown type."""
    if type(module) is nn.MultiheadAttention and type(module) not in _ADAPTERS:
        return attention_parts(module)
    adapter = adapter_for(module)
    if adapter is None:
        return ()
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight") if adapter.sums_rows else adapter.weight(module)
    if not isinstance(weight, nn.Parameter):  # V itself may be pruned, or parametrized
        weight = None
    return (Part("", adapter, weight, own.get("bias")),)


def reason_against(module: nn.Module) -> str:
    """Says why a module without an adapter trains by the base rule."""
    name = type(module).__name__
    if hasattr(nn, name) and type(module) is not getattr(nn, name):
        name = f"{type(module).__module__}.{name}"
    if is_parametrized(module):
        return f"parametrized: no curvature for {name}"
    known = next((why for kind, why in _REASONS if isinstance(module, kind)), "")
    return f"{known}: no curvature for {name}" if known else f"no curvature for {name}"
