"""The curvature of a model's layers: made, carried along when layers change, counted in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from torch_thor.capture.names import joined, own_names
from torch_thor.curvature.memory import MemoryReport, Room, planned, report_on
from torch_thor.curvature.stacks import LayerStack, SplitRule, build_stacks
from torch_thor.curvature.state import NO_STATISTICS, SavedLayer
from torch_thor.layers import parts_of
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from torch_thor.capture.followed import FollowedModel
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.clock import Calendar
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.curvature.stacks import Place
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.layers import Part

Identity: TypeAlias = "tuple[nn.Module, str]"


class CurvatureStore:
    """Stacks of factors and inverses, from the first statistics on.

    Attributes:
        options: Of the engine.
        room: Asks for memory before it is taken.
        stacks: The layers' curvature.
        rule: How it is cut; ``None`` before it is known.
        resting: What is kept of the layers that are frozen.
        curved_by: The tracked layer of each parameter that has curvature to step by.
        changes: How often stacks, layers or ``curved_by`` have become others.
    """

    def __init__(self, options: CurvatureOptions, ranks: Communicator) -> None:
        self.options = options
        self.room = Room(options, ranks)
        self.changes = 0
        self.put([], None, {})

    def put(
        self, stacks: list[LayerStack], rule: SplitRule | None, resting: dict[Identity, SavedLayer]
    ) -> None:
        """Puts other curvature in the place of all that was there."""
        self.stacks, self.rule, self.resting = stacks, rule, resting
        self._places = tuple(place for stack in stacks for place in stack)
        self.curved_by: dict[nn.Parameter, TrackedLayer] = {}
        self.changes += 1
        self.note_ready()

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def note_ready(self) -> None:
        """Notes which parameters have curvature to step by; the others step by the base rule."""
        ready = [place.layer for place in self if place.record.ready]
        curved = {parameter: layer for layer in ready for parameter in layer.parameters}
        if curved.keys() != self.curved_by.keys():
            self.curved_by = curved
            self.changes += 1

    def reasons(self, layers: list[TrackedLayer]) -> dict[nn.Parameter, str]:
        """Why parameters of tracked layers step by the base rule so far."""
        return {
            parameter: layer.cause or NO_STATISTICS
            for layer in layers
            if layer.weight not in self.curved_by
            for parameter in layer.parameters
        }

    def wanted(self, followed: FollowedModel, calendar: Calendar, step: int) -> set[TrackedLayer]:
        """The layers whose statistics a step needs."""
        awake = {
            place.layer
            for place in self
            if not place.record.frozen
            and (not place.record.ready or calendar.any_due(step, place.layer.share))
        }
        # A frozen layer may be thawed before the next forward.
        asleep = {
            layer
            for layer in followed.asleep
            if layer.identity not in self.resting or calendar.any_due(step, layer.share)
        }
        return asleep | (awake if self.stacks else set(followed.layers))

    def begin(
        self, layers: list[TrackedLayer], rule: SplitRule, positions: Mapping[str, int]
    ) -> None:
        """Makes room, once it is known how layers are cut, and the rows that a batch has."""
        self.put(self.made(layers, rule), rule, self.resting)
        for place in self:
            place.record.positions = positions.get(place.layer.name)

    def rest(self) -> None:
        """Keeps a copy of each layer's curvature: it may be frozen now, or get another place."""
        self.resting |= {place.layer.identity: SavedLayer.of(place) for place in self}

    def wake(self, followed: FollowedModel) -> None:
        """Makes room for the layers of a model that has changed, and takes back what they had."""
        present = set(followed.model.modules())
        resting = {one: kept for one, kept in self.resting.items() if one[0] in present}
        stacks = self.stacks
        if self.rule is not None:
            # A rank whose model alone has changed must not wait here for the others.
            stacks = self.made(followed.layers, self.rule, alone=True)
            for place in (place for stack in stacks for place in stack):
                kept = resting.pop(place.layer.identity, None)
                if kept is not None and kept.fits(place):
                    kept.fill(place)
        self.put(stacks, self.rule, resting)

    def made(
        self, layers: list[TrackedLayer], rule: SplitRule, *, alone: bool = False
    ) -> list[LayerStack]:
        """Returns empty stacks, once it is known that there is room for them.

        Raises:
            InvalidOptionError: Where there is too little; on all ranks, unless ``alone``.
        """
        self.room.require(layers, rule, alone=alone)
        return build_stacks(layers, rule, self.options)

    def allocate(self, layers: list[TrackedLayer]) -> None:
        """Makes room now, so that a distributed checkpoint can be loaded into it.

        Raises:
            InvalidOptionError: Where the split is measured, which needs statistics.
        """
        if not self.stacks:
            self.begin(layers, self._said_rule("to allocate before a step"), {})

    def memory(self, layers: list[TrackedLayer]) -> MemoryReport:
        """Says what the curvature of each layer takes, before the first step as after it.

        Raises:
            InvalidOptionError: Where the split is measured, before the first statistics.
        """
        if self.stacks:
            return report_on(self.stacks)
        rule = self.rule or self._said_rule("to know memory before a step")
        return planned(layers, rule, self.options)

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Returns what is to be saved of each layer of a model, by name."""
        names = {identity: name for name, (identity, _) in places_of(model).items()}
        resting = {names[one]: kept for one, kept in self.resting.items() if one in names}
        return {
            "layers": {place.layer.name: SavedLayer.of(place).entry() for place in self},
            "resting": {name: kept.entry() for name, kept in resting.items()},
        }

    def _said_rule(self, purpose: str) -> SplitRule:
        said = self.options.split
        if isinstance(said, str):
            raise InvalidOptionError("split", said, f"a number or None, {purpose}")
        return SplitRule(said)


def places_of(model: nn.Module) -> dict[str, tuple[Identity, Part]]:
    """Returns every weight of a model that has an adapter, by its own name."""
    own = own_names(model)
    return {
        joined(own[path], part.name): ((module, part.name), part)
        for path, module in model.named_modules()
        for part in parts_of(module)
    }
