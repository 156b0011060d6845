"""The engine: statistics → decision → refresh; it owns the curvature of a model's layers."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from torch_thor.capture.capture import Capture
from torch_thor.capture.followed import FollowedModel
from torch_thor.capture.scaling import LossScale
from torch_thor.capture.statistics import batch_of, positions_of
from torch_thor.curvature.clock import Calendar
from torch_thor.curvature.decisions import tell_starved, those_seen
from torch_thor.curvature.due import statistics_of
from torch_thor.curvature.layer_splits import split_rule
from torch_thor.curvature.loading import Loading, Restored
from torch_thor.curvature.refresh import correct
from torch_thor.curvature.skips import SkippedSteps
from torch_thor.curvature.state import FORMAT, SavedState, saved_options
from torch_thor.curvature.store import CurvatureStore
from torch_thor.curvature.verdict import Verdict, renew
from torch_thor.distributed.data_parallel import communicator_for
from torch_thor.distributed.description import describe, describe_model
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch_thor.capture.coverage import Coverage
    from torch_thor.capture.selection import Selector
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.due import DueLayer
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.curvature.stacks import LayerStack, SplitRule
    from torch_thor.options.trace_rule import LayerDecision

_SEED_STRIDE = 1_000_003
_RANK_STRIDE = 1_000_000_007


class CurvatureEngine:
    """Keeps the curvature of a model's layers, from hooks to inverses.

    Attributes:
        followed: The model's layers, as they are now.
        capture: Collects their calls.
        store: Their curvature.
        steps: Steps taken.
        scale: What losses are multiplied by.
        calendar: When factors and inverses are due.
        verdict: What the latest refresh has come to, until the host has taken it in.
    """

    def __init__(self, model: nn.Module, options: CurvatureOptions) -> None:
        allowed = "a torch.nn.Module: the model itself, whose parameters are found in it"
        require("model", model, isinstance(model, nn.Module), allowed)
        self.model, self.options = model, options
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.communicator = communicator_for(options.distributed, self.device)
        self.steps = 0
        self.scale, self.skips = LossScale(), SkippedSteps()
        self._decisions: tuple[LayerDecision, ...] = ()
        self.verdict: Verdict | None = None
        stagger = options.refresh.stagger
        self.followed = FollowedModel(
            model, options.exclude, options.include, options.base, stagger=stagger
        )
        self.capture = Capture(options.statistics, matched=options.eigenvalue_correction)
        self.store = CurvatureStore(options, self.communicator)
        self.calendar = Calendar(options.intervals)
        self.capture.hooks.attach(self.followed.all_layers, self.followed.probe)
        corrected = options.eigenvalue_correction and any(layer.shard for layer in self.layers)
        allowed = "False for sharded weights: no rank has their gradients' second moments"
        require("eigenvalue_correction", corrected, not corrected, allowed)
        self.communicator.agree("model", describe_model(model))
        self.communicator.agree("options of the curvature", describe(options))
        self.capture.note_turns(self.layers)
        self.discard()

    @property
    def layers(self) -> list[TrackedLayer]:
        """Tracked layers, in the model's order."""
        return self.followed.layers

    @property
    def stacks(self) -> list[LayerStack]:
        """The layers' curvature, from the first statistics on."""
        return self.store.stacks

    @property
    def wants_statistics(self) -> bool:
        """Whether the next ``step()`` needs statistics of any layer."""
        return any(layer.armed for layer in self.layers)

    @property
    def last_decisions(self) -> tuple[LayerDecision, ...]:
        """Decisions of the latest step; empty when it refreshed nothing."""
        self._take_verdict()
        return self._decisions

    def follow(self) -> None:
        """Takes in what has changed in the model: layers, parameters, what is trained."""
        if not self.followed.is_current():
            self._find_layers_again()

    def serve(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keeps to the parameters that the optimizer steps, whoever trains the model's others."""
        if self.followed.serve(parameters):
            self._find_layers_again()

    def _find_layers_again(self) -> None:
        """Takes in another set of layers; those that stay keep their curvature."""
        self._take_verdict()
        self.store.rest()
        before = set(self.followed.parameters)
        self.followed.find()
        self.capture.hooks.attach(self.followed.all_layers, self.followed.probe)
        self.followed.tell_left_out(before)
        self.store.wake(self.followed)
        self._arm()

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        self.follow()
        reasons = self.store.reasons(self.layers) if self.steps else {}
        return self.followed.coverage(reasons)

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """Inside, the model has no hooks: for tools that can't pass them, as torch.jit.script."""
        with self.capture.hooks.suspended():
            yield
        self._arm()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the engine with its model; the copy hangs hooks of its own."""
        self._take_verdict()
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.communicator)] = self.communicator  # a process group can't be copied
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        twin.capture.hooks.attach(twin.followed.all_layers, twin.followed.probe)
        twin.discard()
        return twin

    @torch.no_grad()
    def update(self, dampings: Mapping[nn.Parameter, float], gradient_scale: float = 1.0) -> None:
        """Takes in the statistics since the last call and refreshes what is due.

        Whoever calls it has let the engine ``follow`` the model before.

        Args:
            dampings: λ of each weight; in a step that ``wants_statistics`` of none, not needed.
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        self._take_verdict()
        self._decisions = ()
        self.capture.tell_rivals(self.layers)
        # Ranks pool what they have seen, so each has to know which of its own counts.
        self.capture.settle(self.layers, now=self.communicator.size > 1)
        if self.layers and not self.stacks:
            self._begin_curvature()
        due = self._due_layers(dampings, gradient_scale)
        if due:
            self.verdict = renew(due, self.options.trace_rule, self.communicator, self.steps)
            if not self.verdict.can_wait:
                self._take_verdict()
        if self.followed.finds_outputs and (self.stacks or not self.layers):
            self._look_for_outputs()
        self.steps += 1
        self.discard()

    def scale_in_force(self) -> float:
        """What the losses behind the captured gradients were multiplied by."""
        ours = self.options.distributed.reduce_gradients
        return self.scale.in_force(self.layers, ours=ours) if self.wants_statistics else 1.0

    def leave_out(self, dampings: Mapping[nn.Parameter, float], gradient_scale: float) -> None:
        """Takes no part of a step whose gradients are not finite.

        Raises:
            NonFiniteGradientError: Where the user wants that.
        """
        if self.followed.is_sharded:
            # The other ranks, whose shards may be finite, count on this one.
            self.update(dampings, gradient_scale)
        self.discard()
        raises = self.options.refresh.on_nonfinite == "raise"
        self.skips.leave_out(self.steps, self.model, raises=raises)

    def discard(self, *, cut_short: bool = False) -> None:
        """Drops the statistics since the last call, as for a step that is skipped."""
        self.capture.forget(self.followed.all_layers, cut_short=cut_short)
        self._arm()

    def _begin_curvature(self) -> None:
        """Makes room for curvature as soon as a rank has statistics, which says how much."""

        def found() -> tuple[SplitRule, frozenset[str], dict[str, int]]:
            outputs = self.followed.outputs_by_name()
            kept = [layer for layer in self.layers if layer.name not in outputs]
            rule = split_rule(self.options.split, kept, self.options.statistics, self.options.power)
            return rule, outputs, positions_of(kept)

        some = any(one.ledger.read() for one in self.layers) and not self.followed.awaits_outputs
        first = self.communicator.first(found if some else None)
        if first is not None:
            self.followed.leave_outputs(first[1])
            self.store.begin(self.layers, first[0], first[2])

    def _look_for_outputs(self) -> None:
        """Finds those of a model that has grown, or has no curvature, after a backward."""
        followed = self.followed
        seen = followed.probe is not None and followed.probe.has_arrived
        outputs = self.communicator.first(followed.outputs_by_name if seen else None)
        if outputs is not None:
            followed.leave_outputs(outputs)
            self._find_layers_again()

    def _due_layers(
        self, dampings: Mapping[nn.Parameter, float], gradient_scale: float
    ) -> list[DueLayer]:
        """The layers that have new statistics on any rank, with those of all ranks."""
        statistics = self.options.statistics
        sampled = statistics.fisher == "mc"
        for layer in () if self.stacks else self.layers:
            if layer.weight.grad is not None:
                tell_starved(layer, called=layer.called, sampled=sampled)
        places = [place for place in self.store if place.layer.armed]
        batches = [batch_of(place.layer, statistics, gradient_scale) for place in places]
        own = statistics_of(places, batches)
        pooled = self.communicator.pool(self.steps, own)
        refreshed = [self.calendar.inverses_due(self.steps, p.layer.share) for p in places]
        return those_seen(places, pooled, refreshed, dampings, sampled=sampled)

    def _take_verdict(self) -> None:
        """Notes what the latest refresh has come to, which the device may have known later."""
        verdict, self.verdict = self.verdict, None
        if verdict is not None:
            renewed = verdict.read(self.options.refresh.tolerated_failures)
            self._decisions = verdict.reports()
            correct(verdict.due, renewed, self.communicator)
            self.store.note_ready()

    def _arm(self) -> None:
        """Tells the capture which layers the next step needs."""
        self.calendar.advance(self.steps)
        wanted = self.store.wanted(self.followed, self.calendar, self.steps)
        seed = self.options.statistics.seed * _SEED_STRIDE + self.steps
        # Ranks see different samples; their rows need not stand at the same positions.
        seed += self.communicator.rank * _RANK_STRIDE
        self.capture.arm(self.followed.all_layers, wanted, seed)

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain numbers only, so ``weights_only=True`` loads it."""
        self._take_verdict()
        return {
            "format": FORMAT,
            **saved_options(self.options),
            "steps": self.steps,
            **self.calendar.state_dict(),
            **self.store.state_dict(self.model),
            **self.followed.state_dict(),
        }

    def fitting(self, state: object) -> Restored:
        """Checks a ``state_dict`` and makes the curvature that it holds; takes nothing over.

        Raises:
            StateMismatchError: Where layers, shapes or what curvature is differ.
        """
        self.follow()
        return Loading(self.followed, self.store, SavedState.read(state)).whole(self.calendar)

    def fitting_part(self, state: object, leave_out: Selector | Iterable[Selector]) -> Restored:
        """The same for all layers but some, which have no curvature then."""
        self.follow()
        inner = state.get("curvature", state) if isinstance(state, dict) else state
        loading = Loading(self.followed, self.store, SavedState.read(inner))
        return loading.some(self.steps, self.calendar, leave_out)

    def adopt(self, restored: Restored) -> None:
        """Takes over another curvature in the place of all that was there."""
        if restored.outputs is not None:
            self.followed.leave_outputs(restored.outputs)
            self.capture.hooks.attach(self.followed.all_layers, self.followed.probe)
        self.store.put(restored.stacks, restored.rule, restored.resting)
        self.steps, self.calendar = restored.steps, restored.calendar
        self._decisions, self.verdict = (), None
        self.discard(cut_short=True)

    def reset(self) -> None:
        """Forgets the curvature, and what was said of its lack; steps go on counting."""
        for layer in self.layers:
            layer.cause = ""
        self.adopt(Restored(self.steps, self.calendar.at(self.steps)))
