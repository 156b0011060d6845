"""The engine: statistics → decision → refresh; directions are the stacks'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torch_thor import state
from torch_thor.candidates import Candidate, LayerRecord, decide, evidence_of, warn_starved
from torch_thor.capture import Capture, TrackedLayer
from torch_thor.coverage import Coverage, survey
from torch_thor.distributed import communicator_for
from torch_thor.distributed.description import describe, describe_model
from torch_thor.errors import InvalidOptionError, require
from torch_thor.layer_splits import split_rule
from torch_thor.memory import Room
from torch_thor.policies import Decision, LayerDecision, RefreshClock
from torch_thor.refresh import correct, fold, gather, refresh
from torch_thor.schedules import value_at
from torch_thor.shards import is_dtensor
from torch_thor.stacks import LayerStack, SplitRule, StackOptions, build_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch_thor.curvature_options import CurvatureOptions

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
        stacks: The layers' curvature, from the first step with statistics on.
        surveys: How often the model was searched for layers.
        steps: Steps taken.
        last_decisions: Decisions of the latest step; empty when it refreshed nothing.
        communicator: Where the other ranks are reached.
        room: Asks for memory before it is taken.
        device: Where the model lives.
    """

    def __init__(self, model: nn.Module, options: CurvatureOptions) -> None:
        """Finds the layers and hangs the hooks."""
        if not isinstance(model, nn.Module):
            raise InvalidOptionError("model", model, "a torch.nn.Module")
        self.model = model
        self.options = options
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.communicator = communicator_for(options.distributed, self.device)
        self.steps = 0
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
        self._served: frozenset[nn.Parameter] | None = None
        self.stacks: list[LayerStack] = []
        self.records: dict[str, LayerRecord] = {}
        self.clocks = (RefreshClock(), RefreshClock())
        self._find_layers()
        corrected = options.eigenvalue_correction and any(layer.shard for layer in self.layers)
        allowed = "False for sharded weights: no rank has their gradients' second moments"
        require("eigenvalue_correction", corrected, not corrected, allowed)
        self.communicator.agree("model", describe_model(model))
        self.communicator.agree("options of the curvature", describe(options))
        self._arm()

    def _find_layers(self) -> None:
        """Surveys the model, hangs the hooks, and gives each layer its share of an interval."""
        self._capture.remove()
        options = self.options
        self.layers, self._coverage = survey(
            self.model, options.exclude, options.include, self._served
        )
        self.surveys += 1
        self.layer_of = {p: layer for layer in self.layers for p in layer.parameters}
        self._parameters = list(self.model.parameters())
        self._trained = self._requires_grad()
        self._capture.attach(self.layers)
        self.records = {
            layer.name: self.records.get(layer.name, LayerRecord()) for layer in self.layers
        }
        if self.options.refresh.stagger:
            # Shares follow the cost of the layers' statistics.
            total = sum(layer.weight.numel() for layer in self.layers)
            passed = 0
            for layer in self.layers:
                layer.share = passed / total
                passed += layer.weight.numel()

    def _requires_grad(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._parameters]

    def _follow_thaws(self) -> None:
        """Takes in layers that were thawed, or frozen, since the last step."""
        if self._requires_grad() != self._trained:
            self._find_layers_again()

    def serve(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leaves the model's other parameters alone, whoever trains them.

        Args:
            parameters: All that the optimizer steps.
        """
        chosen = frozenset(parameters)
        served = None if chosen.issuperset(self._parameters) else chosen
        if served != self._served:
            self._served = served
            self._find_layers_again()
            self._arm()

    def _find_layers_again(self) -> None:
        """Takes in another set of layers; those that stay keep their curvature."""
        saved = state.save(self)
        self._find_layers()
        if self._split_rule is not None:
            self.stacks = build_stacks(self.layers, self._split_rule, self.stack_options)
            state.restore_layers(self, saved)

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        return self._coverage

    def remove(self) -> None:
        """Takes every hook off the model; the engine stops collecting."""
        self._capture.remove()

    @torch.no_grad()
    def update(self, gradient_scale: float = 1.0) -> None:
        """Takes in the statistics since the last call and refreshes what is due.

        Args:
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        if self.layers and not self.stacks:
            self._build_stacks()
        candidates = self._candidates(gradient_scale)
        if candidates:
            self._renew(candidates)
        self.last_decisions = tuple(c.report(self.steps) for c in candidates if c.refresh)
        self.steps += 1
        self._follow_thaws()
        self._arm()

    def _renew(self, candidates: list[Candidate]) -> None:
        """Decides about layers with new statistics, folds these in, and refreshes what is due."""
        ranks, rule = self.communicator, self.options.trace_rule
        if rule is not None and rule.compare == "distance":
            gather([c for c in candidates if c.refresh and c.is_ready], ranks)
        decide(candidates, rule, ranks)
        fold([c for c in candidates if c.fold], ranks)
        due = [c for c in candidates if c.refresh and c.decision is Decision.UPDATE]
        renewed = refresh(self.stacks, due, ranks, self.options.refresh.tolerated_failures)
        correct(candidates, renewed, ranks)

    @property
    def is_sharded(self) -> bool:
        """Whether this rank owns shards of parameters only, whose values other ranks don't see."""
        return any(is_dtensor(parameter) for parameter in self._parameters)

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
        self._arm()

    def _build_stacks(self) -> None:
        """Makes room for curvature as soon as a rank has statistics."""

        def chosen() -> SplitRule:
            return split_rule(self.options.split, self.layers, self._capture, self.options.power)

        some = any(layer.calls for layer in self.layers)
        self._split_rule = self.communicator.first(chosen if some else None)
        if self._split_rule is not None:
            self._build(self._split_rule)

    def _build(self, rule: SplitRule) -> None:
        self.room.require(self.layers, rule)
        self.stacks = build_stacks(self.layers, rule, self.stack_options)

    def _intervals(self) -> tuple[float, float]:
        intervals = self.options.intervals
        return value_at(intervals.factors, self.steps), value_at(intervals.inverses, self.steps)

    def _arm(self) -> None:
        """Tells the capture which layers the next step needs."""
        for clock, interval in zip(self.clocks, self._intervals(), strict=True):
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

    def _candidates(self, gradient_scale: float) -> list[Candidate]:
        sampled = self.options.statistics.fisher == "mc"
        for layer in () if self.stacks else self.layers:
            if layer.weight.grad is not None:
                record = self.records[layer.name]
                warn_starved(layer.name, record, called=layer.called, sampled=sampled)
        due = [(s, n) for s in self.stacks for n, layer in enumerate(s.layers) if layer.armed]
        own = [
            evidence_of(stack, slot, self._capture.batch(stack.layers[slot], gradient_scale))
            for stack, slot in due
        ]
        found = []
        for (stack, slot), seen in zip(due, self.communicator.pool(self.steps, own), strict=True):
            layer = stack.layers[slot]
            record = self.records[layer.name]
            if seen.seen:
                due_now = not stack.ready[slot] or self.clocks[1].due(self.steps, layer.share)
                found.append(Candidate(stack, slot, record, seen, due_now))
            elif seen.graded:
                warn_starved(layer.name, record, called=seen.called, sampled=sampled)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on, keyed by layer name."""
        return state.save(self)

    def prepare(self, state_dict: object) -> None:
        """Checks that a ``state_dict`` fits and makes room for it; loads nothing.

        Raises:
            StateMismatchError: Where layers or shapes differ.
        """
        state.check_layers(self, state_dict)
        if not state.has_layers(state_dict):
            return
        rule = self._split_rule or state.saved_split(self, state_dict)
        stacks = self.stacks or build_stacks(self.layers, rule, self.stack_options)
        state.check_shapes(stacks, state_dict)
        self.stacks, self._split_rule = stacks, rule

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Raises:
            StateMismatchError: Where layers or shapes differ; nothing is loaded then.
        """
        self.prepare(state_dict)
        state.load(self, state_dict)
        self._arm()
