"""Whether a value is what an option takes, as its annotation says: a type, and a range."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from torch_thor.options.errors import InvalidOptionError


@dataclass(frozen=True)
class Range:
    """Numbers x with ``low <= x < high``; NaN is in none.

    In an annotation: ``decay: Annotated[float, SHARE]``.

    Args:
        low: The least.
        high: Above all of them.
        words: What a message calls them.
        is_open: Whether ``low`` is none of them.
    """

    low: float
    high: float
    words: str
    is_open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number is one of them; one on a device is not read, which would wait."""
        unread = isinstance(value, Tensor) and value.device.type != "cpu"
        if unread:
            return True
        # The least number above zero would be zero where such numbers are flushed.
        above = self.low < value if self.is_open else self.low <= value
        return bool(above and value < self.high)


# Below its smallest normal number float32 loses digits, and devices that flush such numbers to
# zero divide by it. No curvature is damped by less: rounding alone moves it by more.
LEAST_DAMPING = torch.finfo(torch.float32).tiny

RATE = Range(0.0, math.inf, ">= 0 and finite")
SHARE = Range(0.0, 1.0, "in [0, 1)")
POSITIVE = Range(0.0, math.inf, "> 0 and finite", is_open=True)
DAMPING = Range(
    LEAST_DAMPING, math.inf, f"> 0, finite and normal in float32 (>= {LEAST_DAMPING:.2g})"
)
AT_LEAST_ONE = Range(1.0, math.inf, ">= 1 and finite")
COUNT = Range(0, math.inf, ">= 0")
NATURAL = Range(1, math.inf, ">= 1")


class Checked:
    """A dataclass of options whose fields are what their annotations say."""

    def __post_init__(self) -> None:
        check_types(self)


def require_number(name: str, value: object, within: Range) -> None:
    """Raises ``InvalidOptionError`` unless a value is a number of a range."""
    # The short way is taken in every step.
    if not (type(value) is float and within.holds(value)):
        require_type(name, value, Annotated[float, within])


def require_type(name: str, value: object, hint: Any) -> None:
    """Raises unless a value is of an annotated type.

    Args:
        name: The option, as the user wrote it.
        value: Its value.
        hint: A type, ``Annotated`` with a ``Range``, ``Literal``, ``Callable``, a union of these,
            or a tuple of one type.

    Raises:
        InvalidOptionError: With what is allowed instead.
    """
    if type(value) is hint or _fits(value, hint):
        return
    if get_origin(hint) is Literal and isinstance(value, str):
        raise InvalidOptionError(name, value, f"one of {', '.join(map(repr, get_args(hint)))}")
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
    return get_type_hints(kind, include_extras=True)


def _fits(value: Any, hint: Any) -> bool:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    known: dict[Any, type] = {float: Real, int: Integral, None: NoneType}
    if kind is Annotated:
        ranges = (one for one in inside[1:] if isinstance(one, Range))
        fits = _fits(value, inside[0]) and all(one.holds(value) for one in ranges)
    elif kind in (Union, UnionType):
        fits = any(_fits(value, one) for one in inside)
    elif kind is Literal:
        fits = isinstance(value, str) and value in inside
    elif kind is tuple:
        fits = isinstance(value, tuple | list) and all(_fits(one, inside[0]) for one in value)
    elif kind is float and isinstance(value, Tensor):
        fits = value.numel() == 1 and not (value.is_complex() or value.dtype == torch.bool)
    elif kind is Callable:
        fits = callable(value) and not isinstance(value, type | nn.Module)
    else:
        wrong = kind in (float, int) and isinstance(value, bool)
        fits = not wrong and isinstance(value, known.get(kind, kind))
    return fits


def _words(hint: Any) -> str:
    """What a message says of a type."""
    *most, last = _alternatives(hint)
    return f"{', '.join(most)} or {last}" if most else last


def _alternatives(hint: Any) -> list[str]:
    kind, inside = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return [words for one in inside for words in _alternatives(one)]
    if kind is Literal:
        return list(map(repr, inside))
    if kind is Annotated:
        ranges = (one.words for one in inside[1:] if isinstance(one, Range))
        return [" ".join([_words(inside[0]), *ranges])]
    if kind is tuple:
        many = "a tuple of values" if inside[-1] is Ellipsis else f"{len(inside)} values"
        return [f"{many}, each {_words(inside[0])}"]
    if isinstance(kind, type) and is_dataclass(kind):
        return [f"{kind.__name__}(...) of torch_thor"]
    known: dict[Any, str] = {
        float: "a number",
        int: "an int",
        bool: "True or False",
        Callable: "a schedule (a function of the step)",
        NoneType: "None",
        None: "None",
    }
    return [known.get(kind) or f"a {kind.__module__.partition('.')[0]}.{kind.__name__}"]


def _advice(value: object, hint: Any) -> str:
    """What to do about a common slip."""
    kinds = [get_args(one)[0] if get_origin(one) is Annotated else one for one in _members(hint)]
    if isinstance(value, type) or (isinstance(value, dict) and is_dataclass(hint)):
        return ": build one"
    if isinstance(value, str) and {float, int} & {*kinds} and _is_numeral(value):
        return ", without quotes"
    if callable(value) and kinds == [float]:
        return "; lr and damping may be schedules, as arguments of the optimizer"
    return ""


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
