"""The curvature of a model's layers: made, carried along when layers change, counted in bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_thor.capture.snapshot import are_same
from torch_thor.curvature.decisions import LayerRecord
from torch_thor.curvature.memory import MemoryReport, Room, planned, report_on
from torch_thor.curvature.stacks import LayerStack, SplitRule, StackOptions, build_stacks
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from torch_thor.capture.followed import FollowedModel
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.clock import Calendar
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.distributed.communicator import Communicator


class CurvatureStore:
    """Stacks of factors and inverses, from the first statistics on.

    Args:
        options: See ``CurvatureOptions``.
        ranks: Where the other ranks are reached.

    Attributes:
        options: What all stacks share.
        room: Asks for memory before it is taken.
        stacks: The layers' curvature.
        rule: How it is cut; ``None`` before it is known.
        records: What is remembered of each layer, by name.
        resting: What is kept of the layers that are frozen.
        curved_by: The tracked layer of each parameter that has curvature to step by.
        changes: How often layers or ``curved_by`` have become others.
    """

    def __init__(self, options: CurvatureOptions, ranks: Communicator) -> None:
        """Is empty."""
        self._said = options.split
        self._ranks = ranks
        self.options = StackOptions.of(options)
        self.room = Room(options.split, self.options, ranks)
        self.stacks: list[LayerStack] = []
        self.rule: SplitRule | None = None
        self.records: dict[str, LayerRecord] = {}
        self.resting: dict[tuple[nn.Module, str], dict[str, Any]] = {}
        self.curved_by: dict[nn.Parameter, TrackedLayer] = {}
        self.changes = 0
        self._ready: list[tuple[bool, ...]] | None = None
        self._ready_of: tuple[object, ...] = ()

    def remember(self, layers: list[TrackedLayer]) -> None:
        """Keeps the records of some layers, and begins those of new ones."""
        self.records = {layer.name: self.records.get(layer.name, LayerRecord()) for layer in layers}
        self.note_ready(layers)

    def note_ready(self, layers: list[TrackedLayer]) -> None:
        """Notes which parameters have curvature to step by; the others step by the base rule."""
        ready = [tuple(stack.ready) for stack in self.stacks]
        of = (layers, self.stacks)
        if self._ready != ready or not are_same(self._ready_of, of):
            self._ready, self._ready_of = ready, of
            self.changes += 1
            self.curved_by = {
                parameter: layer
                for stack in self.stacks
                for layer, fine in zip(stack.layers, stack.ready, strict=True)
                if fine
                for parameter in layer.parameters
            }

    def reasons(self, layers: list[TrackedLayer]) -> dict[nn.Parameter, str]:
        """Why parameters of tracked layers step by the base rule so far."""
        return {
            parameter: layer.cause or "no statistics yet"
            for layer in layers
            if layer.weight not in self.curved_by
            for parameter in layer.parameters
        }

    def wanted(self, followed: FollowedModel, calendar: Calendar, step: int) -> set[TrackedLayer]:
        """The layers whose statistics a step needs.

        Args:
            followed: The model's layers.
            calendar: When factors and inverses are due.
            step: The step.
        """
        waiting = {
            layer
            for stack in self.stacks
            for layer, ready in zip(stack.layers, stack.ready, strict=True)
            if not ready
        }
        awake = {
            layer
            for layer in followed.layers
            if not self.records[layer.name].frozen
            and (not self.stacks or layer in waiting or calendar.any_due(step, layer.share))
        }
        # A frozen layer may be thawed before the next forward.
        return awake | {
            layer
            for layer in followed.asleep
            if layer.identity not in self.resting or calendar.any_due(step, layer.share)
        }

    def begin(self, layers: list[TrackedLayer], measure: Callable[[], SplitRule] | None) -> None:
        """Makes room as soon as a rank has statistics.

        Args:
            layers: All of the model's.
            measure: Finds the cut, where this rank has statistics.
        """
        self.rule = self._ranks.first(measure)
        if self.rule is not None:
            self._build(layers, self.rule)

    def rebuild(self, layers: list[TrackedLayer]) -> None:
        """Makes room for another set of layers, whose curvature is in ``resting`` as far as any."""
        if self.rule is not None:
            # A rank whose model alone has changed must not wait here for the others.
            self._build(layers, self.rule, alone=True)

    def allocate(self, layers: list[TrackedLayer]) -> None:
        """Makes room now, so that a distributed checkpoint can be loaded into it.

        Raises:
            InvalidOptionError: Where the split is measured, which needs statistics.
        """
        if not self.stacks:
            self.rule = self._said_rule("to allocate before a step")
            self._build(layers, self.rule)

    def memory(self, layers: list[TrackedLayer]) -> MemoryReport:
        """Says what the curvature of each layer takes, before the first step as after it.

        Raises:
            InvalidOptionError: Where the split is measured, before the first statistics.
        """
        if self.stacks:
            return report_on(self.stacks)
        rule = self.rule or self._said_rule("to know memory before a step")
        return report_on(planned(layers, rule, self.options))

    def _build(self, layers: list[TrackedLayer], rule: SplitRule, *, alone: bool = False) -> None:
        self.room.require(layers, rule, alone=alone)
        self.stacks = build_stacks(layers, rule, self.options)

    def _said_rule(self, purpose: str) -> SplitRule:
        if isinstance(self._said, str):
            raise InvalidOptionError("split", self._said, f"a number or None, {purpose}")
        return SplitRule(self._said)
