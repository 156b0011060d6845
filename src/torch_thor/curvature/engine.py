"""The engine: statistics → decision → refresh; directions are the stacks'."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from torch_thor.capture.capture import Capture
from torch_thor.capture.coverage import Coverage, as_seen, survey
from torch_thor.capture.snapshot import Snapshot, are_same
from torch_thor.curvature import loading, state
from torch_thor.curvature.clock import RefreshClock
from torch_thor.curvature.decisions import (
    DueLayer,
    LayerRecord,
    decide,
    statistics_of,
    tell_starved,
)
from torch_thor.curvature.layer_splits import split_rule
from torch_thor.curvature.loading import Restored
from torch_thor.curvature.memory import Room
from torch_thor.curvature.refresh import correct, fold, gather, refresh
from torch_thor.curvature.stacks import LayerStack, SplitRule, StackOptions, build_stacks
from torch_thor.distributed.data_parallel import communicator_for
from torch_thor.distributed.description import describe, describe_model
from torch_thor.layers.shards import is_dtensor
from torch_thor.options.checks import AT_LEAST_ONE, require_number
from torch_thor.options.errors import InvalidOptionError, require
from torch_thor.options.notices import warn
from torch_thor.options.schedules import value_at
from torch_thor.options.trace_rule import Decision, LayerDecision

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch_thor.capture.selection import Selector
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.options import CurvatureOptions

_SEED_STRIDE = 1_000_003
_RANK_STRIDE = 1_000_000_007


class CurvatureEngine:
    """Keeps the curvature of a model's layers, from hooks to inverses.

    Args:
        model: Model whose layers are tracked.
        options: See ``CurvatureOptions``.

    Attributes:
        layers: Tracked layers, in the model's order.
        layer_of: The tracked layer of each of their parameters.
        curved_by: The same of the layers that have curvature to step by.
        stacks: The layers' curvature, from the first step with statistics on.
        surveys: How often either of the two has changed.
        steps: Steps taken.
        began: The step from which intervals count.
        resting: What is kept of the layers that are frozen.
        last_decisions: Decisions of the latest step; empty when it refreshed nothing.
        communicator: Where the other ranks are reached.
        room: Asks for memory before it is taken.
        device: Where the model lives.
    """

    def __init__(self, model: nn.Module, options: CurvatureOptions) -> None:
        """Finds the layers and hangs the hooks."""
        allowed = "a torch.nn.Module: the model itself, whose parameters are found in it"
        require("model", model, isinstance(model, nn.Module), allowed)
        self.model = model
        self.options = options
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.communicator = communicator_for(options.distributed, self.device)
        self.steps = 0
        self.began = 0
        self._coming: tuple[int, int, list[float]] = -1, 0, []
        self.last_decisions: tuple[LayerDecision, ...] = ()
        self.stack_options = StackOptions(
            options.power,
            options.damping.mode,
            options.statistics.decay,
            options.eigenvalue_correction,
            options.refresh.inverse_dtype,
            options.statistics.norm_fisher == "diagonal",
        )
        self._capture = Capture(options.statistics, matched=options.eigenvalue_correction)
        self._split_rule: SplitRule | None = None
        self.room = Room(options.split, self.stack_options, self.communicator)
        self.layers: list[TrackedLayer] = []
        self.surveys = 0
        self._chosen: frozenset[nn.Parameter] | None = None
        self.stacks: list[LayerStack] = []
        self.curved_by: dict[nn.Parameter, TrackedLayer] = {}
        self._ready: list[tuple[bool, ...]] | None = None
        self._ready_of: tuple[object, ...] = ()
        self._told_rivals = False
        self.resting: dict[state.Identity, dict[str, Any]] = {}
        self.records: dict[str, LayerRecord] = {}
        self.clocks = (RefreshClock(), RefreshClock())
        self._find_layers()
        corrected = options.eigenvalue_correction and any(layer.shard for layer in self.layers)
        allowed = "False for sharded weights: no rank has their gradients' second moments"
        require("eigenvalue_correction", corrected, not corrected, allowed)
        self.communicator.agree("model", describe_model(model))
        self.communicator.agree("options of the curvature", describe(options))
        self._capture.note_turns(self.layers)
        self.discard()

    def _find_layers(self) -> None:
        """Surveys the model, hangs the hooks, and gives each layer its share of an interval."""
        self._capture.remove()
        options = self.options
        known = {layer.identity: layer for layer in self.layers}
        chosen = self._chosen
        served = None if chosen and chosen.issuperset(self.model.parameters()) else chosen
        found, self._coverage = survey(self.model, options.exclude, options.include, served)
        # A layer that is still what it was goes on with the calls that it has.
        self.layers = [
            old if (old := known.get(new.identity)) and old.is_as(new) else new for new in found
        ]
        for layer, new in zip(self.layers, found, strict=True):
            layer.name = new.name
        self._snapshot = Snapshot(self.model)
        self.layer_of = {p: layer for layer in self.layers for p in layer.parameters}
        self._capture.attach(self.layers)
        self.records = {
            layer.name: self.records.get(layer.name, LayerRecord()) for layer in self.layers
        }
        self._note_ready()
        if self.options.refresh.stagger:
            # Shares follow the cost of the layers' statistics.
            total = sum(layer.weight.numel() for layer in self.layers)
            passed = 0
            for layer in self.layers:
                layer.share = passed / total
                passed += layer.weight.numel()

    def follow(self) -> None:
        """Takes in what has changed in the model: layers, parameters, what is trained."""
        if not self._snapshot.is_current():
            self._find_layers_again()

    def serve(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leaves the model's other parameters alone, whoever trains them.

        Args:
            parameters: All that the optimizer steps.
        """
        chosen = frozenset(parameters)
        if chosen != self._chosen:
            self._chosen = chosen
            self._find_layers_again()

    def _find_layers_again(self) -> None:
        """Takes in another set of layers; those that stay keep their curvature."""
        old = {layer.identity: layer.name for stack in self.stacks for layer in stack.layers}
        saved = state.save(self)["layers"]
        self.resting |= {one: saved[name] for one, name in old.items()}
        before = set(self._snapshot.parameters)
        self._find_layers()
        self._tell_left_out([p for p in self._snapshot.parameters if p not in before])
        present = set(self.model.modules())
        self.resting = {one: it for one, it in self.resting.items() if one[0] in present}
        if self._split_rule is not None:
            # A rank whose model alone has changed must not wait here for the others.
            self._build(self._split_rule, alone=True)
            state.restore_layers(
                self,
                {
                    layer.name: self.resting.pop(layer.identity)
                    for layer in self.layers
                    if layer.identity in self.resting
                },
            )
            self._note_ready()
        self._arm()

    def _tell_left_out(self, new: list[nn.Parameter]) -> None:
        """Says of parameters that came into the model that nobody trains them."""
        left = {p for p in new if p.requires_grad and self._chosen and p not in self._chosen}
        names = [name for name, p in self.model.named_parameters() if p in left]
        if names:
            shown = ", ".join(names[:3])
            warn(
                f"{len(names)} parameters that are new in the model ({shown}) are in no parameter "
                "group, so they don't train. Call optimizer.add_param_group, or build the "
                "optimizer after the model is complete."
            )

    def _note_ready(self) -> None:
        """Notes which parameters have curvature to step by; the others step by the base rule."""
        ready = [tuple(stack.ready) for stack in self.stacks]
        of = (self.layers, self.stacks)
        if self._ready != ready or not are_same(self._ready_of, of):
            self._ready, self._ready_of = ready, of
            self.surveys += 1
            self.curved_by = {
                parameter: layer
                for stack in self.stacks
                for layer, fine in zip(stack.layers, stack.ready, strict=True)
                if fine
                for parameter in layer.parameters
            }

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        self.follow()
        reasons = {
            parameter: why
            for layer in self.layers
            if (why := self._how(layer))
            for parameter in layer.parameters
        }
        own = set(self._snapshot.parameters)
        foreign = sum(parameter not in own for parameter in self._chosen or ())
        return as_seen(self._coverage, self.model, reasons, foreign)

    def _how(self, layer: TrackedLayer) -> str:
        """Why a layer steps by the base rule so far; empty where it is preconditioned."""
        if layer.weight in self.curved_by or not self.steps:
            return ""
        return layer.cause or "no statistics yet"

    def use_mask(self, counts: Tensor) -> None:
        """Leaves padding out of the statistics of the next forwards, until the next step.

        Positions whose output gradient is exactly zero are left out of token layers anyway, unless
        all of a call's are zero.

        Args:
            counts: True where a position counts, of the shape of the activations without their
                last dimension, ``[N, T]``.

        Raises:
            InvalidOptionError: For anything but a tensor of bools.
        """
        given: object = counts
        valid = isinstance(given, Tensor) and given.dtype == torch.bool
        require("mask", given, valid, "a tensor of bools, [N, T]")
        self._capture.mask(counts)

    def remove(self) -> None:
        """Takes every hook off the model; the engine stops collecting."""
        self._capture.remove()

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """Inside, the model has no hooks: for tools that can't pass them, as torch.jit.script."""
        self._capture.remove()
        try:
            yield
        finally:
            self._capture.attach(self.layers)
            self._arm()

    def _tell_rivals(self) -> None:
        """Warns, once, where another optimizer steps the same layers too."""
        others_stepped = self._capture.take_turn()
        if self._told_rivals or not others_stepped:
            return
        if rivals := self._capture.rivals(self.layers):
            self._told_rivals = True
            warn(
                f"Another optimizer or preconditioner of torch_thor acts on {len(rivals)} layers "
                f"of this model too ({', '.join(map(repr, rivals[:3]))}). Step one of them only, "
                "or give each parameters of its own."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the engine with its model; the copy hangs hooks of its own."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.communicator)] = self.communicator  # a process group can't be copied
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        twin._capture.attach(twin.layers)
        twin.discard()
        return twin

    @torch.no_grad()
    def update(self, gradient_scale: float = 1.0) -> None:
        """Takes in the statistics since the last call and refreshes what is due.

        Whoever calls it has let the engine ``follow`` the model before.

        Args:
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        self._tell_rivals()
        self._capture.settle(self.layers)
        if self.layers and not self.stacks:
            self._build_stacks()
        due_layers = self._due_layers(gradient_scale)
        if due_layers:
            self._renew(due_layers)
        self.last_decisions = tuple(c.report(self.steps) for c in due_layers if c.refresh)
        self._note_ready()
        self.steps += 1
        self.discard()

    def _renew(self, due_layers: list[DueLayer]) -> None:
        """Decides about layers with new statistics, folds these in, and refreshes what is due."""
        ranks, rule = self.communicator, self.options.trace_rule
        if rule is not None and rule.compare == "distance":
            gather([c for c in due_layers if c.refresh and c.is_ready], ranks)
        decide(due_layers, rule, ranks)
        fold([c for c in due_layers if c.fold], ranks)
        due = [c for c in due_layers if c.refresh and c.decision is Decision.UPDATE]
        renewed = refresh(self.stacks, due, ranks, self.options.refresh.tolerated_failures)
        correct(due_layers, renewed, ranks)

    @property
    def is_sharded(self) -> bool:
        """Whether this rank owns shards of parameters only, whose values other ranks don't see."""
        return any(is_dtensor(parameter) for parameter in self._snapshot.parameters)

    def allocate(self) -> None:
        """Makes room for the curvature now, so that a distributed checkpoint can be loaded into it.

        Raises:
            InvalidOptionError: Where the split is measured, which needs statistics.
        """
        size = self.options.split
        if isinstance(size, str):
            raise InvalidOptionError("split", size, "a number or None, to allocate before a step")
        if not self.stacks:
            self._split_rule = SplitRule(size)
            self._build(self._split_rule)

    @property
    def wants_statistics(self) -> bool:
        """Whether the next ``step()`` needs statistics of any layer."""
        return any(layer.armed for layer in self.layers)

    def discard(self) -> None:
        """Drops the statistics since the last call, as for a step that is skipped."""
        self._capture.forget(self.layers)
        self._arm()

    def _build_stacks(self) -> None:
        """Makes room for curvature as soon as a rank has statistics."""

        def chosen() -> SplitRule:
            return split_rule(self.options.split, self.layers, self._capture, self.options.power)

        some = any(layer.ledger.read() for layer in self.layers)
        self._split_rule = self.communicator.first(chosen if some else None)
        if self._split_rule is not None:
            self._build(self._split_rule)

    def _build(self, rule: SplitRule, *, alone: bool = False) -> None:
        self.room.require(self.layers, rule, alone=alone)
        self.stacks = build_stacks(self.layers, rule, self.stack_options)

    def check_schedules(self) -> None:
        """Raises, before a step has changed anything, where its end would meet a bad interval."""
        coming = self.steps + 1
        self._coming = coming, self.began, self.intervals(coming, self.began)

    def intervals(self, step: int, began: int) -> list[float]:
        """Returns the intervals of factors and inverses that begin at a step.

        Args:
            step: The step.
            began: The step from which they count.

        Raises:
            InvalidOptionError: For what is no interval.
        """
        said, passed = self.options.intervals, step - began
        found = [value_at(one, passed, "interval") for one in (said.factors, said.inverses)]
        for interval in found:
            require_number(f"interval at step {passed}", interval, AT_LEAST_ONE)
        return found

    def _arm(self) -> None:
        """Tells the capture which layers the next step needs."""
        step, began, intervals = self._coming
        if (step, began) != (self.steps, self.began):
            intervals = self.intervals(self.steps, self.began)
        for clock, interval in zip(self.clocks, intervals, strict=True):
            clock.advance(self.steps, interval)
        waiting = {
            layer
            for stack in self.stacks
            for layer, ready in zip(stack.layers, stack.ready, strict=True)
            if not ready
        }
        wanted = {
            layer
            for layer in self.layers
            if not self.records[layer.name].frozen
            and (
                not self.stacks
                or layer in waiting
                or any(clock.due(self.steps, layer.share) for clock in self.clocks)
            )
        }
        seed = self.options.statistics.seed * _SEED_STRIDE + self.steps
        # Ranks see different samples; their rows need not stand at the same positions.
        seed += self.communicator.rank * _RANK_STRIDE
        self._capture.arm(self.layers, wanted, seed)

    def _due_layers(self, gradient_scale: float) -> list[DueLayer]:
        sampled = self.options.statistics.fisher == "mc"
        for layer in () if self.stacks else self.layers:
            if layer.weight.grad is not None:
                tell_starved(layer, self.records[layer.name], called=layer.called, sampled=sampled)
        due = [(s, n) for s in self.stacks for n, layer in enumerate(s.layers) if layer.armed]
        own = [
            statistics_of(stack, slot, self._capture.batch(stack.layers[slot], gradient_scale))
            for stack, slot in due
        ]
        found = []
        for (stack, slot), seen in zip(due, self.communicator.pool(self.steps, own), strict=True):
            layer = stack.layers[slot]
            record = self.records[layer.name]
            if seen.seen:
                due_now = not stack.ready[slot] or self.clocks[1].due(self.steps, layer.share)
                found.append(DueLayer(stack, slot, record, seen, due_now))
            elif seen.graded:
                tell_starved(layer, record, called=seen.called, sampled=sampled)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on, keyed by layer name."""
        return state.save(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Loading is the whole state: one that was saved before the first step clears the curvature.
        What the curvature is must be the same: layers and their shapes, ``power``, eigenvalue
        correction, ``fisher``, ``weight_sharing``, ``norm_fisher``, ``loss_reduction``, and
        ``split`` where it is a number or ``None``; a measured split takes the checkpoint's cut.
        All else (intervals, trace rule, damping mode, norm control, types) is this one's.

        Raises:
            StateMismatchError: Where layers, shapes or these options differ; nothing is loaded
                then.
        """
        self.adopt(self.fitting(state_dict))

    def load_curvature(
        self, state: dict[str, Any], leave_out: Selector | Iterable[Selector] = ()
    ) -> None:
        """Loads the curvature of all layers but some, such as a new head; steps go on counting.

        Args:
            state: What ``state_dict()`` returned, of an optimizer or a preconditioner.
            leave_out: Modules (names, with ``*`` as wildcard, or types), of the model or of the
                checkpoint, that are left out: they begin without curvature.

        Raises:
            StateMismatchError: Where the other layers differ, or what must be the same in
                ``load_state_dict``; nothing is loaded then.
            InvalidOptionError: Where ``leave_out`` means nothing.
        """
        self.follow()
        self.adopt(loading.some(self, state, leave_out, self._split_rule))

    def reset_curvature(self) -> None:
        """Forgets factors, inverses and decisions; statistics begin anew with the next step.

        Intervals count from here, and layers that a trace rule froze are free. Momentum and the
        count of steps, which schedules follow, stay. In a distributed run all ranks call it.
        """
        records = {layer.name: LayerRecord() for layer in self.layers}
        clocks = (RefreshClock(), RefreshClock())
        self.adopt(Restored([], None, records, self.steps, self.steps, clocks))

    def fitting(self, state_dict: object) -> Restored:
        """Checks a ``state_dict`` and makes the curvature that it holds; takes nothing over.

        Raises:
            StateMismatchError: See ``load_state_dict``.
        """
        self.follow()
        return loading.whole(self, state_dict, self._split_rule)

    def adopt(self, restored: Restored) -> None:
        """Takes over another curvature in the place of all that was there."""
        self.stacks, self._split_rule = restored.stacks, restored.rule
        self.records = restored.records
        self.steps, self.began = restored.steps, restored.began
        self.clocks = restored.clocks
        self.last_decisions = ()
        self.resting = restored.resting
        self._note_ready()
        self.discard()
