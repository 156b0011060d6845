"""The search for a step that lowers the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from torch_thor.least_squares.residuals import Residuals, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch_thor.least_squares.levenberg import LevenbergMarquardt
    from torch_thor.least_squares.quadratic import Direction, Proposal

_HALVINGS = 20
_RAISES = 12


@dataclass(frozen=True)
class StepReport:
    """What a step of ``GaussNewton`` has come to.

    Attributes:
        loss: Loss before the step.
        predicted: Change of the loss that the quadratic model, undamped, expected.
        actual: Change on the same residuals; NaN where the loss was not finite.
        damping: λ of the step.
        length: What the model's step was multiplied by; 0 where none was taken.
        coefficients: What the quadratic model multiplied each direction by.
        attempts: Steps that were tried.
    """

    loss: float
    predicted: float
    actual: float
    damping: float
    length: float
    coefficients: tuple[float, ...]
    attempts: int

    @property
    def ratio(self) -> float:
        """ρ, the actual ÷ the predicted change: 1 where the model is right."""
        return self.actual / self.predicted if self.predicted else math.nan


class Proposer(Protocol):
    """What has a quadratic model of the loss at the weights before the step.

    Attributes:
        redamps: Whether another λ costs little.
    """

    redamps: bool

    def propose(self, damping: float, previous: Direction | None) -> Proposal | None:
        """The step that the model damped by λ finds best, if λ is large enough."""


class Search:
    """Tries steps from the weights as they are.

    Args:
        closure: Returns the residuals.
        loss: Loss at the weights as they are.
        trained: What moves.
        limit: Bound on √(dᵀGd), or ``None``.
        retries: Whether a step that raises the loss is tried again.
    """

    def __init__(
        self,
        closure: Callable[[], Residuals],
        loss: float,
        trained: Sequence[nn.Parameter],
        *,
        limit: float | None,
        retries: bool,
    ) -> None:
        self._closure, self._loss, self._trained = closure, loss, trained
        self._limit, self._retries = limit, retries
        self._before = [p.detach().clone() for p in trained]

    def run(
        self, model: Proposer, rule: LevenbergMarquardt, previous: Direction | None
    ) -> tuple[StepReport, Direction | None]:
        """Tries steps until one lowers the loss, or there are no more to try.

        Args:
            model: Proposes steps.
            rule: λ, which follows.
            previous: The previous step.

        Returns:
            What it has come to, and the step that was taken.
        """
        most = 1 + (_RAISES if model.redamps else _HALVINGS) * self._retries
        proposal: Proposal | None = None
        length, attempts = 1.0, 0
        numbers: tuple[float, ...] = ()
        while attempts < most:
            attempts += 1
            if proposal is None or model.redamps:
                proposal = model.propose(rule.damping, previous)
                length = 1.0 if proposal is None else self._within(proposal)
            if proposal is None:
                rule.refuse()
                continue
            numbers = tuple(proposal.coefficients.tolist())
            predicted, actual = self._look(proposal, length)
            if actual < 0 or not (self._retries or math.isnan(actual)):
                report = StepReport(
                    self._loss, predicted, actual, rule.damping, length, numbers, attempts
                )
                rule.accept(report.ratio if actual < 0 else 0.0)
                return report, [part * length for part in proposal.step]
            self.go_back()
            if model.redamps:
                rule.refuse()
            length /= 2
        if not model.redamps:
            rule.refuse()
        return StepReport(self._loss, 0.0, 0.0, rule.damping, 0.0, numbers, attempts), None

    def _within(self, proposal: Proposal) -> float:
        """The length of a step inside the trust region."""
        if self._limit is None:
            return 1.0
        size = float(proposal.bend.sqrt())
        return min(1.0, self._limit / size) if size > 0 else 1.0

    def _look(self, proposal: Proposal, length: float) -> tuple[float, float]:
        """Moves the weights; the predicted and the actual change of the loss."""
        for parameter, part in zip(self._trained, proposal.step, strict=True):
            # Past autograd's version: the graph at the weights of before is used again.
            parameter.data.add_(part, alpha=length)
        after = Terms(self._closure()).loss.detach()
        predicted, now = _numbers(proposal.change(length), after)
        return predicted, now - self._loss if math.isfinite(now) else math.nan

    @torch.no_grad()
    def go_back(self) -> None:
        """Restores the weights of before."""
        for parameter, old in zip(self._trained, self._before, strict=True):
            parameter.data.copy_(old)


def _numbers(*scalars: Tensor) -> list[float]:
    """Some scalars as numbers, by one wait for the device."""
    numbers: list[float] = torch.stack([one.detach().double() for one in scalars]).tolist()
    return numbers
