"""The engine: statistics → decision → refresh → direction."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from torch_thor import norms, state
from torch_thor.candidates import Candidate, LayerRecord, decide
from torch_thor.capture import Capture, TrackedLayer
from torch_thor.coverage import Coverage, Selector, survey
from torch_thor.errors import CurvatureError, CurvatureWarning, InvalidOptionError, require
from torch_thor.fisher import Likelihood, sampled_loss
from torch_thor.inverses import factorize
from torch_thor.options import (
    Damping,
    NormControl,
    NormControlKind,
    Refresh,
    Statistics,
    as_norm_control,
)
from torch_thor.policies import Decision, LayerDecision, RefreshClock, TraceRule
from torch_thor.schedules import GrowingInterval, ScheduledFloat, value_at
from torch_thor.split import choose_split
from torch_thor.stacks import LayerStack, SplitRule, StackOptions, build_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable

_SEED_STRIDE = 1_000_003


class Preconditioner:
    """Natural-gradient preconditioning in front of any torch optimizer.

    Call ``preconditioner.step()`` after ``backward()`` and before the optimizer's
    ``step()``: it rewrites the ``.grad`` of every preconditioned layer.

    Args:
        model: Model whose layers are preconditioned.
        damping: λ (relative to the mean eigenvalue), a schedule, or a ``Damping``.
        split: Block size of both factors, ``"auto"`` (measured on this device), or
            ``None`` for whole factors.
        power: p of G^-p ∇W A^-p; 1 is the paper's, 1/2 the default.
        factor_interval: Steps between updates of the factors, a number or a schedule.
        inverse_interval: Steps between refreshes of the inverses; ``None`` follows
            ``factor_interval``.
        trace_rule: When a due layer is refreshed, kept or frozen; ``None`` always refreshes.
        norm_control: Length of each layer's direction, ``"graft"`` or ``"rms"`` (or a
            ``NormControl`` of that kind), or ``None``.
        statistics: How factors are estimated.
        refresh: Staggering, type of the inverses, failure handling.
        exclude: Modules (names, with ``*`` as wildcard, or types) left alone.
        include: The same for types that are left alone unless asked for: embeddings, norms.
        eigenvalue_correction: EKFAC's eigenvalue-corrected basis.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        damping: ScheduledFloat | Damping = 3e-4,
        split: int | Literal["auto"] | None = 72,
        power: float = 0.5,
        factor_interval: ScheduledFloat = GrowingInterval(),
        inverse_interval: ScheduledFloat | None = None,
        trace_rule: TraceRule | None = None,
        norm_control: NormControl | NormControlKind | None = None,
        statistics: Statistics = Statistics(),
        refresh: Refresh = Refresh(),
        exclude: Iterable[Selector] = (),
        include: Iterable[Selector] = (),
        eigenvalue_correction: bool = False,
    ) -> None:
        """Finds the layers and hangs the hooks."""
        require("power", power, power in (0.5, 1.0), "1 or 1/2")
        if split not in (None, "auto") and not (isinstance(split, int) and split >= 1):
            raise InvalidOptionError("split", split, "an int >= 1, 'auto' or None")
        for name, interval in (
            ("factor_interval", factor_interval),
            ("inverse_interval", inverse_interval),
        ):
            valid = interval is None or callable(interval) or interval >= 1
            require(name, interval, valid, ">= 1 step, or a schedule")
        if not isinstance(model, nn.Module):
            raise InvalidOptionError("model", model, "a torch.nn.Module")
        self.damping = damping if isinstance(damping, Damping) else Damping(damping)
        self._norm_control = as_norm_control(norm_control)
        if self._norm_control is not None and self._norm_control.kind == "kl_clip":
            allowed = "'graft', 'rms' or None: the KL clip needs a learning rate, so use THOR"
            raise InvalidOptionError("norm_control", norm_control, allowed)
        self.trace_rule = trace_rule
        self.statistics = statistics
        self.refresh_options = refresh
        self.factor_interval = factor_interval
        self.inverse_interval = inverse_interval
        self.steps = 0
        self.last_decisions: tuple[LayerDecision, ...] = ()
        self._split = split
        self.options = StackOptions(
            power,
            self.damping.mode,
            statistics.decay,
            eigenvalue_correction,
            refresh.inverse_dtype,
        )
        self._selectors = (tuple(exclude), tuple(include))
        self.model = model
        self._capture = Capture(statistics)
        self._split_rule: SplitRule | None = None
        self.layers: list[TrackedLayer] = []
        self.surveys = 0
        self.stacks: list[LayerStack] = []
        self.records: dict[str, LayerRecord] = {}
        self.clocks = (RefreshClock(), RefreshClock())
        self._find_layers()
        self._arm()

    def _find_layers(self) -> None:
        """Surveys the model, hangs the hooks, and gives each layer its share of an interval."""
        self._capture.remove()
        self.layers, self._coverage = survey(self.model, *self._selectors)
        self.surveys += 1
        self.layer_of = {p: layer for layer in self.layers for p in layer.parameters}
        self._parameters = list(self.model.parameters())
        self._trained = self._requires_grad()
        self._capture.attach(self.layers)
        self.records = {
            layer.name: self.records.get(layer.name, LayerRecord()) for layer in self.layers
        }
        if self.refresh_options.stagger:
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
        if self._requires_grad() == self._trained:
            return
        saved = state.save(self)
        self._find_layers()
        if self._split_rule is not None:
            self.stacks = build_stacks(self.layers, self._split_rule, self.options)
            state.restore_layers(self, saved)

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        return self._coverage

    def remove(self) -> None:
        """Takes every hook off the model; the engine stops collecting."""
        self._capture.remove()

    def step(self) -> None:
        """Updates the curvature and rewrites ``.grad`` of every preconditioned layer."""
        for layer in self.layers:
            layer.damping = value_at(self.damping.value, self.steps)
        self.update()
        with torch.no_grad():
            for stack in self.stacks:
                self._rewrite(stack)

    def _rewrite(self, stack: LayerStack) -> None:
        slots = [n for n, layer in enumerate(stack.layers) if layer.weight.grad is not None]
        if not slots:
            return
        layers = [stack.layers[slot] for slot in slots]
        gradients = [_gradients(layer) for layer in layers]
        source = stack.pack(gradients)
        direction = stack.direction(slots, source)
        if self._norm_control is not None:
            norms.set_lengths(self._norm_control, [direction], [source])
        pairs = zip(gradients, stack.unpack(slots, direction), strict=True)
        for (weight, bias), (new_weight, new_bias) in pairs:
            weight.copy_(new_weight)
            if bias is not None and new_bias is not None:
                bias.copy_(new_bias)

    @torch.no_grad()
    def update(self, gradient_scale: float = 1.0) -> None:
        """Takes in the statistics since the last call and refreshes what is due.

        Args:
            gradient_scale: What the loss was multiplied by (a GradScaler's scale).
        """
        if not self.stacks and any(layer.calls for layer in self.layers):
            self._build_stacks()
        candidates = self._candidates(gradient_scale)
        decide(candidates, self.trace_rule)
        self._fold(candidates)
        self._refresh([c for c in candidates if c.refresh and c.decision is Decision.UPDATE])
        self.last_decisions = tuple(c.report(self.steps) for c in candidates if c.refresh)
        self.steps += 1
        self._follow_thaws()
        self._arm()

    @property
    def wants_statistics(self) -> bool:
        """Whether the next ``step()`` needs statistics of any layer."""
        return any(layer.armed for layer in self.layers)

    def sample_fisher(
        self,
        outputs: Tensor,
        likelihood: Likelihood = "categorical",
        *,
        class_dim: int = -1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Collects statistics of labels that are drawn from the model's own predictions.

        For ``Statistics(fisher="mc")``: call it between forward and ``backward()``, once for
        each forward. It runs a backward of its own in steps that want statistics, does
        nothing in the others, and leaves every ``.grad`` and the graph as they were.

        Args:
            outputs: The model's outputs ``[N, ...]``: logits, or means.
            likelihood: ``"categorical"`` (softmax over ``class_dim``), ``"bernoulli"``
                (sigmoid of each entry) or ``"normal"`` (unit variance, squared loss).
            class_dim: Dimension of the classes.
            generator: Source of the draws; ``None`` takes torch's own.

        Raises:
            InvalidOptionError: For an unknown likelihood.
        """
        if self.wants_statistics:
            reduction = self.statistics.loss_reduction
            self.fisher_backward(
                sampled_loss(
                    outputs,
                    likelihood,
                    class_dim=class_dim,
                    reduction=reduction,
                    generator=generator,
                )
            )

    def fisher_backward(self, loss: Tensor) -> None:
        """Runs a backward for the statistics alone: the free form of ``sample_fisher``.

        Args:
            loss: Scalar loss of labels drawn from the model, reduced as
                ``Statistics(loss_reduction=...)`` says. Its graph is kept.
        """
        weights = [layer.weight for layer in self.layers if layer.armed]
        if weights:
            with self._capture.sampled_backward():
                torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)

    def discard(self) -> None:
        """Drops the statistics since the last call, as for a step that is skipped."""
        self._arm()

    def _build_stacks(self) -> None:
        self._split_rule = choose_split(self._split, self.layers, self._capture)
        self.stacks = build_stacks(self.layers, self._split_rule, self.options)

    def _intervals(self) -> tuple[float, float]:
        factor = value_at(self.factor_interval, self.steps)
        inverse = self.inverse_interval
        return factor, factor if inverse is None else value_at(inverse, self.steps)

    def _arm(self) -> None:
        """Tells the capture which layers the next step needs."""
        for clock, interval in zip(self.clocks, self._intervals(), strict=True):
            clock.advance(self.steps, interval)
        ready = {
            layer
            for stack in self.stacks
            for layer, r in zip(stack.layers, stack.ready, strict=True)
            if r
        }
        wanted = {
            layer
            for layer in self.layers
            if not self.records[layer.name].frozen
            and (
                layer not in ready
                or any(clock.due(self.steps, layer.share) for clock in self.clocks)
            )
        }
        seed = self.statistics.seed * _SEED_STRIDE + self.steps
        self._capture.arm(self.layers, wanted, seed)

    def _candidates(self, gradient_scale: float) -> list[Candidate]:
        found = []
        if not self.stacks:
            for layer in self.layers:
                self._warn_starved(layer)
        for stack in self.stacks:
            for slot, layer in enumerate(stack.layers):
                if not layer.armed:
                    continue
                batch = self._capture.batch(layer, gradient_scale)
                if batch is None:
                    self._warn_starved(layer)
                    continue
                refresh = not stack.ready[slot] or self.clocks[1].due(self.steps, layer.share)
                found.append(Candidate(stack, slot, self.records[layer.name], batch, refresh))
        return found

    def _warn_starved(self, layer: TrackedLayer) -> None:
        record, sampled = self.records[layer.name], self.statistics.fisher == "mc"
        if layer.weight.grad is None or record.starved or (layer.called and not sampled):
            return
        record.starved = True
        if layer.called:
            cause = "no backward of sampled labels reached it since the last step"
            remedy = "Call optimizer.sample_fisher(outputs) before loss.backward()."
        else:
            cause = "its forward hook saw no call since the last step"
            remedy = (
                "Build the optimizer before torch.compile(model), call modules and not their "
                "weights, or exclude the layer."
            )
        warnings.warn(
            f"Layer {layer.name!r} has a gradient but {cause}, so its curvature is not "
            f"updated. {remedy}",
            CurvatureWarning,
            stacklevel=5,
        )

    def _fold(self, candidates: list[Candidate]) -> None:
        for c in candidates:
            if c.fold:
                c.stack.fold(c.slot, *c.batch)
                if not c.refresh:
                    c.stack.correct(c.slot, c.batch, new=False)

    def _refresh(self, candidates: list[Candidate]) -> None:
        chosen = [(s, [c for c in candidates if c.stack is s]) for s in self.stacks]
        chosen = [(stack, due) for stack, due in chosen if due]
        if not chosen:
            return
        jobs = [job for stack, due in chosen for job in stack.jobs([c.slot for c in due])]
        success = factorize(jobs, chosen[0][0].inverses.kernel)
        for number, (_, due) in enumerate(chosen):
            for place, c in enumerate(due):
                good_a, good_g = success[2 * number][place], success[2 * number + 1][place]
                self._settle(c, succeeded=good_a and good_g)

    def _settle(self, candidate: Candidate, *, succeeded: bool) -> None:
        record = candidate.record
        if succeeded:
            record.trace, record.failures = candidate.trace, 0
            candidate.stack.ready[candidate.slot] = True
            candidate.stack.correct(candidate.slot, candidate.batch, new=True)
            return
        record.failures += 1
        message = (
            f"The factors of layer {candidate.layer.name!r} could not be inverted "
            f"({record.failures} times in a row); its last good inverse stays. "
            "Raise damping, or exclude the layer."
        )
        if record.failures > self.refresh_options.tolerated_failures:
            raise CurvatureError(message)
        warnings.warn(message, CurvatureWarning, stacklevel=5)

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
        stacks = self.stacks or build_stacks(self.layers, rule, self.options)
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


def _gradients(layer: TrackedLayer) -> tuple[Tensor, Tensor | None]:
    weight = layer.weight.grad
    if weight is None:
        raise InvalidOptionError("layer", layer.name, "a layer whose weight has a gradient")
    return weight, None if layer.bias is None else layer.bias.grad
