"""What users see of the curvature, of an optimizer and of a preconditioner alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_thor.capture.fisher import Draw, Likelihood, sampled_loss
from torch_thor.curvature.report import statistics_of
from torch_thor.distributed.joining import UnevenInputs
from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import Sorter, mark_nonfinite
from torch_thor.options.errors import require
from torch_thor.options.schedules import value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from torch_thor.capture.coverage import Coverage
    from torch_thor.capture.selection import Selector
    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.curvature.memory import MemoryReport
    from torch_thor.curvature.report import Moves, StatisticsReport
    from torch_thor.distributed.wire import Traffic
    from torch_thor.linalg.foreach import Lots
    from torch_thor.options.distributed import Distributed
    from torch_thor.options.trace_rule import LayerDecision


@dataclass(frozen=True)
class Looked:
    """What is known of the gradients of a step that is taken."""

    lots: Lots  # which of them go together
    scale: float  # what losses were multiplied by
    found_inf: Tensor | None  # one where a gradient is not finite, if only the device knows


class HasCurvature(UnevenInputs):
    """Something that trains a model with the curvature of its layers, which its engine has."""

    def __init__(self, engine: CurvatureEngine) -> None:
        super().__init__()
        self.engine = engine
        self._sorter = Sorter()

    def _follow_model(self) -> None:
        """Takes in what has changed in the model, and in who trains it."""
        self.engine.follow()

    def _look_at_gradients(
        self, parameters: Sequence[nn.Parameter], dampings: Mapping[nn.Parameter, float]
    ) -> Looked | None:
        """Averages gradients over ranks, and leaves the step out where one is not finite.

        Returns:
            What was found out about them; ``None``: left out.

        Raises:
            NonFiniteGradientError: Where a gradient is not finite and that is to be an error.
        """
        engine = self.engine
        engine.communicator.average_gradients(parameters)
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        lots = self._sorter.sort(gradients)
        ignored = engine.options.refresh.on_nonfinite == "ignore" or not gradients
        found_inf = None if ignored else mark_nonfinite(lots, gradients)
        if self._defers(lots):
            if found_inf is None:
                found_inf = torch.zeros((), dtype=torch.float32, device=gradients[0].device)
            engine.skips.note(found_inf, engine.steps, engine.model)
            return Looked(lots, 1.0, found_inf)
        finite = found_inf is None or not found_inf.item()
        self._tell_joined(engine.communicator, skipped=not finite)
        scale = engine.scale_in_force()
        if finite:
            engine.skips.end_row(found_inf)
            return Looked(lots, scale, None)
        engine.leave_out(dampings, scale)
        return None

    def _defers(self, lots: Lots) -> bool:  # noqa: ARG002 (for those that can)
        """Whether the device leaves this step out by itself, so that the host need not wait."""
        return False

    @property
    def _distribution(self) -> tuple[Distributed, torch.device]:
        return self.engine.options.distributed, self.engine.device

    def memory(self) -> MemoryReport:
        """Says what the curvature of each layer takes, before the first step as after it.

        Output layers count among the others until a step has found them (``Base(outputs=True)``).

        Raises:
            InvalidOptionError: Where the split is measured, before the first statistics.
        """
        found = self.engine.store.memory(self.engine.layers)
        return replace(found, finds_outputs=self.engine.followed.finds_outputs)

    def allocate(self) -> None:
        """Makes room for all state now, so that a distributed checkpoint can be loaded into it.

        ``torch.distributed.checkpoint`` loads into the tensors of a ``state_dict()``, of which
        there are none before the first step.

        Raises:
            InvalidOptionError: Where the split is measured, which needs statistics, or output
                layers are to be found, which needs a backward.
        """
        self.engine.followed.require_outputs()
        self.engine.store.allocate(self.engine.layers)

    def statistics(self) -> StatisticsReport:
        """Says of each layer how old its curvature is, what it looks like, and how far it steps.

        See ``LayerNumbers``. It is all computed when asked for, without waiting for the device, and
        plain steps cost nothing. Step and direction are those of the latest ``step()``, found again
        from momentum and gradients: ask after ``step()`` and before ``zero_grad()``. Where the
        gradients are gone, a step of the default is that of its momentum alone, and one that
        needs the gradient itself is NaN. A ``Preconditioner`` takes no steps, so that both are
        NaN. In a distributed run each rank asks for itself.
        """
        self._follow_model()
        return statistics_of(self.engine, self._damping_of(), self._latest_moves())

    def _damping_of(self) -> Mapping[nn.Parameter, float]:
        """λ of each weight, as it is now."""
        damping = value_at(self.engine.options.damping.value, self.engine.steps, "damping")
        return {layer.weight: damping for layer in self.engine.layers}

    def _latest_moves(self) -> Moves:
        """What the latest step did, see ``statistics_of``; nothing for who takes no steps."""
        return ()

    @property
    def last_decisions(self) -> tuple[LayerDecision, ...]:
        """Decisions of the latest ``step()``; empty when it refreshed nothing."""
        return self.engine.last_decisions

    @property
    def wants_statistics(self) -> bool:
        """Whether the next ``step()`` needs statistics of any layer."""
        return self.engine.wants_statistics

    @property
    def traffic(self) -> Traffic:
        """Messages and bytes that this rank has sent for the curvature."""
        return self.engine.communicator.traffic

    def coverage(self) -> Coverage:
        """Says for every parameter how it trains, and why."""
        self._follow_model()
        return self.engine.coverage()

    @torch.no_grad()
    def factor_norms(self) -> dict[str, float]:
        """Returns ‖A ⊗ G‖ (Frobenius, undamped) of the curvature of each layer, by name.

        Only the blocks that the split keeps count. Empty before the first statistics.
        """
        norms_of: dict[str, float] = {}
        for stack in self.engine.stacks:
            squares = [
                factor.blocks.double().square().sum((2, 3, 4)) for factor in (stack.a, stack.g)
            ]
            lengths = (squares[0] * squares[1]).sum(1).sqrt().tolist()
            norms_of.update((lay.name, n) for lay, n in zip(stack.layers, lengths, strict=True))
        return norms_of

    def remove(self) -> None:
        """Takes every hook off the model; nothing is collected any more."""
        self.engine.capture.hooks.remove()

    def without_hooks(self) -> AbstractContextManager[None]:
        """Inside, the model has no hooks: for tools that can't pass them, as torch.jit.script."""
        return self.engine.without_hooks()

    def use_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Tells of a GradScaler, whose scale the captured output gradients have.

        One whose ``scaler.step(optimizer)`` takes the step of THOR, KFAC or EKFAC is found by
        itself; where the step is called otherwise, as a ``Preconditioner``'s always is, its scale
        would enter G.

        Args:
            scaler: The scaler.

        Raises:
            InvalidOptionError: For anything else.
        """
        given: object = scaler
        allowed = "a torch.amp.GradScaler"
        require("scaler", given, isinstance(given, torch.amp.GradScaler), allowed)
        self.engine.scale.scaler = scaler

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
        self.engine.capture.mask(counts)

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
        nothing in the others, and leaves every ``.grad`` and the graph as they were. Positions
        that ``use_mask`` leaves out have no label.

        Args:
            outputs: The model's outputs ``[N, ...]``: logits, or means.
            likelihood: ``"categorical"`` (softmax over ``class_dim``), ``"bernoulli"``
                (sigmoid of each entry) or ``"normal"`` (unit variance, squared loss).
            class_dim: Dimension of the classes.
            generator: Source of the draws; ``None`` takes torch's own.

        Raises:
            InvalidOptionError: For an unknown likelihood, or outputs without classes that need
                some.
        """
        if self.wants_statistics:
            mask = self.engine.capture.mask_in_force
            loss, draw = sampled_loss(
                outputs, likelihood, class_dim=class_dim, mask=mask, generator=generator
            )
            self._run_sampled(loss, draw)

    def fisher_backward(self, loss: Tensor) -> None:
        """Runs a backward for the statistics alone: the free form of ``sample_fisher``.

        Args:
            loss: Scalar loss of labels drawn from the model, reduced as
                ``Statistics(loss_reduction=...)`` says. Under gradient accumulation the losses of
                the parts add up to that of the whole, as training losses do. Its graph is kept.
        """
        self._run_sampled(loss, None)

    def _run_sampled(self, loss: Tensor, draw: Draw | None) -> None:
        weights = [layer.weight for layer in self.engine.layers if layer.armed]
        if weights:
            with self.engine.capture.sampled_backward(draw):
                torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)

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
        self._follow_model()
        self.engine.adopt(self.engine.fitting_part(state, leave_out))

    def reset_curvature(self) -> None:
        """Forgets factors, inverses and decisions; statistics begin anew with the next step.

        Intervals count from here, and layers that a trace rule froze are free. Momentum and the
        count of steps, which schedules follow, stay. In a distributed run all ranks call it.
        """
        self.engine.reset()
