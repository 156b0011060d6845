"""Which modules a user means by names, patterns and types."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from torch_thor.errors import InvalidOptionError
from torch_thor.layers import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch_thor.layers import Part

Selector: TypeAlias = str | type[nn.Module]

_ALLOWED = "a module's name (* is a wildcard) or type, or several in a tuple"


def as_selectors(option: str, value: object) -> tuple[Selector, ...]:
    """Returns selectors as a tuple; one alone needs no brackets.

    Args:
        option: Name of the argument, for messages.
        value: What the user gave for it.

    Raises:
        InvalidOptionError: For what is neither a name nor a type.
    """
    if isinstance(value, str | type):
        return (value,)
    if isinstance(value, dict) or not isinstance(value, Iterable):
        raise InvalidOptionError(option, value, _ALLOWED)
    found: list[Selector] = []
    for selector in value:
        if not isinstance(selector, str | type):
            raise InvalidOptionError(option, selector, _ALLOWED)
        found.append(selector)
    return tuple(found)


def selected(option: str, model: nn.Module, selectors: Iterable[Selector]) -> frozenset[str]:
    """Returns the names of all modules, and of their parts, that selectors mean.

    What a module holds goes with it, however the module was named: its children and theirs. A
    module that stands at several places can be named by each; it counts under its first name.

    Args:
        option: Name of the argument, for messages.
        model: The model.
        selectors: Names, patterns or types.

    Raises:
        InvalidOptionError: For a selector that means nothing of the model.
    """
    first = {id(module): name for name, module in model.named_modules()}
    found: set[str] = set()
    for selector in selectors:
        meant = {name for part in _meant(model, selector, first) for name in part}
        if not meant:
            shown = selector if isinstance(selector, str) else selector.__name__
            allowed = "the name (or pattern, or type) of a module of the model: "
            raise InvalidOptionError(option, shown, allowed + "model.named_modules() lists them")
        found |= meant
    return frozenset(found)


def full_name(module_name: str, part: Part) -> str:
    """The name of a part of a module; most modules are one part without a name of its own."""
    return ".".join(filter(None, (module_name, part.name)))


def _meant(
    model: nn.Module, selector: Selector, first: Mapping[int, str]
) -> Iterator[Iterable[str]]:
    """The first names of what each hit of a selector holds."""
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(selector, str):
            if isinstance(module, selector):
                yield _held(module, first)
            continue
        if fnmatch.fnmatchcase(name, selector):
            yield _held(module, first)
        for part in parts_of(module):
            # An attention layer's projections have names of their own.
            if part.name and fnmatch.fnmatchcase(full_name(name, part), selector):
                yield (full_name(first[id(module)], part),)


def _held(module: nn.Module, first: Mapping[int, str]) -> Iterator[str]:
    for inner in module.modules():
        yield first[id(inner)]
        yield from (full_name(first[id(inner)], part) for part in parts_of(inner))
