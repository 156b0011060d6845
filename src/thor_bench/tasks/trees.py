"""Batches of any form: tensors in tuples, lists and mappings, however nested."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def named(value: object) -> str:
    """Returns what a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same structure with every tensor changed; what is no tensor stays."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return _like(tree, {key: mapped(value, change) for key, value in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(value, change) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(value, change) for value in tree)
    return tree


def _like(tree: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """Returns a mapping of the same type, such as a tokenizer's, where that can be built."""
    if type(tree) is dict:
        return values
    try:
        return type(tree)(values)  # type: ignore[call-arg] # most mappings take one
    except TypeError:
        return values


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yields the tensors of a structure, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors(value)


def samples(batch: Any) -> int:
    """Returns the number of samples: the length of the first tensor that has one.

    Raises:
        ValueError: There is no such tensor.
    """
    for tensor in tensors(batch):
        if tensor.dim():
            return len(tensor)
    message = f"a batch is {named(batch)}, in which no tensor has a first dimension"
    raise ValueError(f"{message}; its samples must lie along that of a tensor")


def rows(batch: Any, part: slice) -> Any:
    """Returns some samples of a batch; tensors of another length stay whole."""
    count = samples(batch)
    return mapped(batch, lambda one: one[part] if one.dim() and len(one) == count else one)


def placed(
    batch: Any, device: torch.device, *, memory_format: torch.memory_format, wait: bool
) -> Any:
    """Returns a batch on a device, images (four dimensions) in a layout.

    An object of another kind moves where it has a method ``to``, as graphs do.
    """

    def move(tensor: Tensor) -> Tensor:
        layout = memory_format if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(device, memory_format=layout, non_blocking=not wait)

    known = isinstance(batch, Tensor | Mapping | tuple | list)
    return batch.to(device) if not known and hasattr(batch, "to") else mapped(batch, move)
