"""What a parameter group says for itself, and what a step takes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from torch_thor.schedules import value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch_thor.schedules import Schedule

ParameterGroup: TypeAlias = dict[str, Any]

OWN = "own"


def note_own(group: ParameterGroup, options: Iterable[str]) -> None:
    """Notes in a new group which options it brought along, before defaults fill in the others.

    Plain data, so that it is saved and loaded with the group. A group that served another
    optimizer has its note already.
    """
    group.setdefault(OWN, tuple(sorted(name for name in options if name in group)))


def says(group: ParameterGroup, name: str) -> bool:
    """Says whether a group's value is its own; schedules and the base rule leave it then."""
    return name in group.get(OWN, ())


def values_at(
    groups: Iterable[ParameterGroup], schedules: Mapping[str, Schedule], step: int
) -> list[dict[str, float]]:
    """Returns what schedules give to each group; nothing in the place of what is its own."""
    given = {name: value_at(schedule, step) for name, schedule in schedules.items()}
    return [{k: v for k, v in given.items() if not says(group, k)} for group in groups]
