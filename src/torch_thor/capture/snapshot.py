"""What a model consists of, remembered so that a change is seen at no cost worth a name."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn


def are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether two sequences hold the very same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


class Snapshot:
    """The modules and parameters of a model, and which of them are trained."""

    def __init__(self, model: nn.Module) -> None:
        tables = [
            vars(module).get(name)
            for module in model.modules()
            for name in ("_modules", "_parameters")
        ]
        # A scripted module keeps them elsewhere, and they can't be replaced.
        self._tables = [table for table in tables if isinstance(table, dict)]
        self._held = list(self._now())
        self._names = list(chain.from_iterable(self._tables))
        self.parameters = list(model.parameters())
        self._trained = self._flags()

    def is_current(self) -> bool:
        """Whether the model still holds the same, at every place, and trains the same."""
        # Whatever is renamed, or taken out and put back, is found by its new name.
        same = are_same(list(self._now()), self._held) and self._flags() == self._trained
        return same and list(chain.from_iterable(self._tables)) == self._names

    def _now(self) -> Iterable[object]:
        return chain.from_iterable(table.values() for table in self._tables)

    def _flags(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.parameters]
