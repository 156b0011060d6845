"""Which modules a user means by names, patterns and types."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from torch_thor.capture.names import joined, own_names
from torch_thor.layers import parts_of
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Selector: TypeAlias = str | type[nn.Module]

_ALLOWED = "a module's name (* is a wildcard) or type, or several in a tuple"


def as_selectors(option: str, value: object) -> tuple[Selector, ...]:
    """Returns selectors as a tuple; one alone needs no brackets.

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


def selected(
    option: str, model: nn.Module, selectors: Iterable[Selector], others: Iterable[str] = ()
) -> frozenset[str]:
    """Returns the names of all modules, and of their parts, that selectors mean.

    What a module holds goes with it, however the module was named: its children and theirs. A
    module that stands at several places can be named by each; it counts under its first name. In
    a wrapped model (``torch.compile``) modules can be named, and count, with the wrapper's segment
    and without it.

    Args:
        option: Name of the argument, for messages.
        model: The model.
        selectors: Names, patterns or types.
        others: Own names that patterns may mean too, such as a checkpoint's.

    Raises:
        InvalidOptionError: For a selector that means nothing of the model.
    """
    own = own_names(model)
    first = {id(module): {name, own[name]} for name, module in model.named_modules()}
    elsewhere = list(others)
    found: set[str] = set()
    for selector in selectors:
        meant = {name for hit in _hits(model, selector, own, first) for name in hit}
        meant |= {name for name in elsewhere if _holds(selector, name)}
        if not meant:
            shown = selector if isinstance(selector, str) else selector.__name__
            allowed = "the name (or pattern, or type) of a module of the model: "
            raise InvalidOptionError(option, shown, allowed + "model.named_modules() lists them")
        found |= meant
    return frozenset(found)


def _hits(
    model: nn.Module, selector: Selector, own: Mapping[str, str], first: Mapping[int, set[str]]
) -> Iterator[Iterable[str]]:
    """The first names of what each hit of a selector holds."""
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(selector, str):
            if isinstance(module, selector):
                yield _held(module, first)
            continue
        labels = {name, own[name]}
        if any(fnmatch.fnmatchcase(label, selector) for label in labels):
            yield _held(module, first)
        for part in parts_of(module):
            # An attention layer's projections have names of their own.
            parts = (joined(label, part.name) for label in labels if part.name)
            if any(fnmatch.fnmatchcase(label, selector) for label in parts):
                yield (joined(label, part.name) for label in first[id(module)])


def _held(module: nn.Module, first: Mapping[int, set[str]]) -> Iterator[str]:
    for inner in module.modules():
        for name in first[id(inner)]:
            yield name
            yield from (joined(name, part.name) for part in parts_of(inner))


def _holds(selector: Selector, name: str) -> bool:
    """Says whether a pattern means a name or what it stands inside of."""
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return isinstance(selector, str) and any(fnmatch.fnmatchcase(one, selector) for one in around)
