"""Descriptions that are equal on two ranks exactly where model or options are."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def describe(value: object) -> str:
    """Describes options: dataclasses by their fields, functions and types by their names.

    Addresses, which differ between processes, never show.
    """
    if is_dataclass(value) and not isinstance(value, type):
        inside = [f"{f.name}={describe(getattr(value, f.name))}" for f in fields(value) if f.repr]
        return f"{type(value).__qualname__}({', '.join(inside)})"
    if isinstance(value, dict):
        return describe([*value.items()])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe, value))}]"
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return repr(value)


def describe_model(model: nn.Module) -> str:
    """Describes names, shapes and types of all parameters, and whether they train."""
    lines = [
        f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}"
        for name, parameter in model.named_parameters()
    ]
    return "\n".join(lines)
