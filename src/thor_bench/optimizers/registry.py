"""The peers by name, found in their folder."""

from collections.abc import Iterable
from importlib import import_module
from operator import attrgetter
from pkgutil import iter_modules
from typing import Any

from thor_bench.errors import unknown_choice
from thor_bench.optimizers import peers
from thor_bench.optimizers.peer import Peer


def find_peers() -> dict[str, Peer[Any]]:
    """Returns every peer of every module in the folder, by name in alphabetical order."""
    names = (f"{peers.__name__}.{module.name}" for module in iter_modules(peers.__path__))
    found = [peer for name in names for peer in import_module(name).PEERS]
    return {peer.name: peer for peer in sorted(found, key=attrgetter("name"))}


OPTIMIZERS = find_peers()


def find_optimizer(name: str, *, argument: str = "--optimizer") -> Peer[Any]:
    """Returns an optimizer by the name that a user gave for an argument.

    Raises:
        BenchError: There is none of that name.
    """
    if name not in OPTIMIZERS:
        raise unknown_choice(argument, name, OPTIMIZERS)
    return OPTIMIZERS[name]


def lacking(names: Iterable[str]) -> dict[str, str]:
    """Returns, of those optimizers that don't run here, what each lacks."""
    found = {name: find_optimizer(name, argument="--optimizers").lacks() for name in names}
    return {name: what for name, what in found.items() if what is not None}
