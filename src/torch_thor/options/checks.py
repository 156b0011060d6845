"""Whether a value is what an option takes: its type from the annotation, its range by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from torch_thor.options.errors import InvalidOptionError


@dataclass(frozen=True)
class Range:
    """Numbers x with ``low <= x < high``; NaN is in none.

    Args:
        low: The least.
        high: Above all of them.
        words: What a message calls them.
    """

    low: float
    high: float
    words: str

    def holds(self, value: Any) -> bool:
        """Says whether a number is one of them."""
        return bool(self.low <= value < self.high)


# Below its smallest normal number float32 loses digits, and devices that flush such numbers to
# zero divide by it. No curvature is damped by less: rounding alone moves it by more.
LEAST_DAMPING = torch.finfo(torch.float32).tiny

RATE = Range(0.0, math.inf, ">= 0 and finite")
SHARE = Range(0.0, 1.0, "in [0, 1)")
POSITIVE = Range(math.ulp(0.0), math.inf, "> 0 and finite")
DAMPING = Range(
    LEAST_DAMPING, math.inf, f"> 0, finite and normal in float32 (>= {LEAST_DAMPING:.2g})"
)
AT_LEAST_ONE = Range(1.0, math.inf, ">= 1 and finite")


def require_number(name: str, value: object, within: Range) -> None:
    """Raises unless a value is a number of a range.

    Args:
        name: The option, as the user wrote it.
        value: Its value. A tensor on a device is taken as it is: reading it would wait for it.
        within: What is allowed.

    Raises:
        InvalidOptionError: With both.
    """
    if isinstance(value, Tensor) and value.device.type != "cpu" and value.numel() == 1:
        return
    if not ((type(value) is float or _fits(value, float)) and within.holds(value)):
        raise InvalidOptionError(name, value, f"a number {within.words}{_advice(value, float)}")


def require_type(name: str, value: object, hint: Any) -> None:
    """Raises unless a value is of an annotated type.

    Args:
        name: The option, as the user wrote it.
        value: Its value.
        hint: A type, a union of types, ``Literal`` (any string: which, is asked elsewhere),
            ``Callable``, or a tuple of one type.

    Raises:
        InvalidOptionError: With what is allowed instead.
    """
    if type(value) is not hint and not _fits(value, hint):
        raise InvalidOptionError(name, value, _words(hint) + _advice(value, hint))


def check_types(options: Any, *, but: str = "", **names: str) -> None:
    """Raises unless each field of a dataclass is of its annotated type.

    Args:
        options: The dataclass.
        but: A field that is left to the caller.
        names: What messages call a field, where that is not its name.

    Raises:
        InvalidOptionError: For the first that is not.
    """
    kind: type = type(options)
    hints = _hints(kind)
    for field in (one for one in fields(options) if one.name != but):
        value = getattr(options, field.name)
        require_type(names.get(field.name, field.name), value, hints[field.name])


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, inside[0]) for one in value)
    if kind is float and isinstance(value, Tensor):
        return value.numel() == 1 and not (value.is_complex() or value.dtype == torch.bool)
    if kind is Callable:
        return callable(value) and not isinstance(value, type | nn.Module)
    if kind in (float, int) and isinstance(value, bool):
        return False
    known: dict[Any, type] = {float: Real, int: Integral, Literal: str, None: NoneType}
    return isinstance(value, known.get(kind, kind))


def _words(hint: Any) -> str:
    """What a message says of a type."""
    kind: Any = get_origin(hint) or hint
    inside = get_args(hint)
    if kind in (Union, UnionType, Literal):
        *most, last = map(repr if kind is Literal else _words, inside)
        return f"{', '.join(most)} or {last}" if most else last
    if kind is tuple:
        return f"a tuple of {_words(inside[0]).partition(' ')[2]}s"
    if isinstance(kind, type) and is_dataclass(kind):
        return f"{kind.__name__}(...) of torch_thor"
    known: dict[Any, str] = {
        float: "a number",
        int: "an int",
        bool: "True or False",
        Callable: "a schedule (a function of the step)",
        NoneType: "None",
        None: "None",
    }
    return known.get(kind, f"a {kind.__module__.partition('.')[0]}.{kind.__name__}")


def _advice(value: object, hint: Any) -> str:
    """What to do about a common slip."""
    if isinstance(value, type) or (isinstance(value, dict) and is_dataclass(hint)):
        return ": build one"
    if isinstance(value, str) and {float, int} & {hint, *get_args(hint)}:
        return ", without quotes"
    if callable(value) and hint is float:
        return "; lr and damping may be schedules, as arguments of the optimizer"
    return ""


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raises unless a value is one of a ``Literal``'s.

    Args:
        name: The option, as the user wrote it.
        value: Its value.
        choices: The ``Literal``.

    Raises:
        InvalidOptionError: With all of them.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidOptionError(name, value, "one of " + ", ".join(map(repr, allowed)))
