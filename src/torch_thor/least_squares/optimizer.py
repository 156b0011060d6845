"""Gauss–Newton: steps of sums of squares by their exact curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.least_squares.exact import ExactCurvature
from torch_thor.least_squares.kronecker import KroneckerCurvature
from torch_thor.least_squares.levenberg import LevenbergMarquardt
from torch_thor.least_squares.quadratic import Direction, Proposal
from torch_thor.least_squares.residuals import Residuals, Terms
from torch_thor.options.checks import DAMPING, NATURAL, POSITIVE, require_type
from torch_thor.options.errors import InvalidOptionError, StateMismatchError, require

Curvature: TypeAlias = Literal["exact", "kronecker"]

_HALVINGS = 20
_RAISES = 12


@dataclass(frozen=True)
class StepReport:
    """What a step of ``GaussNewton`` has come to.

    Attributes:
        loss: Loss before the step.
        predicted: Change of the loss that the quadratic model, undamped, expected.
        actual: Change on the same residuals; NaN where it was not looked at.
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


class GaussNewton(torch.optim.Optimizer):
    """Gauss–Newton with Levenberg–Marquardt damping, for equations and fits by squares.

    ``step(closure)`` takes a closure as L-BFGS does, but one that returns residuals and neither
    their loss nor gradients: a tensor ``[N, ...]``, or several, each a term with points of its own.
    The loss is ½ Σ_terms mean over rows of ‖row‖²; to weigh a term, multiply it by the root of its
    weight. Inside a step the closure is called again, so it must not draw new points then.

    ``curvature="exact"`` solves (JᵀJ + λ) d = −Jᵀr for all weights together. It takes time as
    min(rows, parameters)³ and memory as rows × parameters: hundreds to a few thousand rows.
    ``"kronecker"`` takes K-FAC's direction, that of parameters without curvature, and the previous
    step, with the lengths that minimize the quadratic model; its products are exact (Martens and
    Grosse 2015, sections 6 and 7).

    Args:
        model: Model to train.
        params: Parameters to train; ``None`` takes all of the model's.
        damping: First λ, relative to the mean square of a residual's gradient.
        adaptive: Whether λ follows the ratio of the loss's change to the model's.
        curvature: ``"exact"`` or ``"kronecker"``.
        line_search: Whether a step that raises the loss is tried again: with a larger λ where
            that is cheap (``"exact"``), else at half its length, down to 2⁻²⁰.
        momentum: Whether the previous step is a direction too, for ``"kronecker"``.
        trust_region: Bound on √(dᵀJᵀJd), how far a step moves the residuals to first order; its
            unit is the loss's root. ``None``: no bound.
        interval: Steps between refreshes of ``"kronecker"``.
        seed: Of the signs that ``"kronecker"`` draws.

    Attributes:
        last_step: What the latest step has come to; ``None`` before the first.

    Raises:
        InvalidOptionError: For a value out of range, or a model that ``"exact"`` can't take.

    Example:
        >>> optimizer = GaussNewton(net)
        >>> def closure():
        ...     u = derivatives(net, inside)
        ...     return u.laplacian - source, 10 * (net(border) - wanted)
        >>> loss = optimizer.step(closure)
    """

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[nn.Parameter] | None = None,
        *,
        damping: float = 1e-3,
        adaptive: bool = True,
        curvature: Curvature = "exact",
        line_search: bool = True,
        momentum: bool = True,
        trust_region: float | None = None,
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        given: object = model
        require("model", model, isinstance(given, nn.Module), "a torch.nn.Module")
        for name, value, hint in (
            ("damping", damping, Annotated[float, DAMPING]),
            ("adaptive", adaptive, bool),
            ("curvature", curvature, Curvature),
            ("line_search", line_search, bool),
            ("momentum", momentum, bool),
            ("trust_region", trust_region, Annotated[float, POSITIVE] | None),
            ("interval", interval, Annotated[int, NATURAL]),
            ("seed", seed, int),
        ):
            require_type(name, value, hint)
        chosen = list(model.parameters() if params is None else params)
        # λ and its growth change from step to step, so they stand where a checkpoint saves them.
        defaults = {"damping": None, "growth": 2.0, "floor": 0.0}
        super().__init__(chosen, defaults)
        require("params", chosen, len(self.param_groups) == 1, "parameters, not groups")
        self._first, self._adaptive = damping, adaptive
        self._searches, self._limit = line_search, trust_region
        self._remembers = momentum and curvature == "kronecker"
        self._trained: list[nn.Parameter] = self.param_groups[0]["params"]
        self.last_step: StepReport | None = None
        self._curvature: ExactCurvature | KroneckerCurvature
        if curvature == "exact":
            self._curvature = ExactCurvature(model, self._trained)
        else:
            self._curvature = KroneckerCurvature(
                model, self._trained, interval=interval, seed=seed
            )

    @property
    def damping(self) -> float | None:
        """λ of the next step; ``None`` before the first, which measures it."""
        value: float | None = self.param_groups[0]["damping"]
        return value

    @torch.enable_grad()
    def step(self, closure: Callable[[], Residuals]) -> Tensor:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Returns the residuals, with their graph.

        Returns:
            The loss before the step, a scalar outside the graph.

        Raises:
            InvalidOptionError: Where the closure returns no residuals.
            ValueError: Where rows of the residuals are none of the network's (``"exact"``).
        """
        curvature = self._curvature
        self._trained = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        curvature.begin(self._trained)
        terms = Terms(closure())
        curvature.observe(terms)
        loss = terms.loss.detach()
        del terms
        group = self.param_groups[0]
        if group["damping"] is None:
            scale = float(curvature.scale)
            group["damping"] = self._first * scale
            group["floor"] = torch.finfo(loss.dtype).eps * scale
        rule = LevenbergMarquardt(
            group["damping"], group["growth"], self._adaptive, group["floor"]
        )
        with torch.no_grad():
            before = [p.clone() for p in self._trained]
        self._search(closure, float(loss), rule, before)
        curvature.end()
        group["damping"], group["growth"] = rule.damping, rule.growth
        return loss

    def _search(
        self,
        closure: Callable[[], Residuals],
        loss: float,
        rule: LevenbergMarquardt,
        before: list[Tensor],
    ) -> None:
        """Tries steps until one lowers the loss, or there are no more to try."""
        redamps = self._curvature.redamps
        most = 1 if not self._searches else 1 + (_RAISES if redamps else _HALVINGS)
        proposal: Proposal | None = None
        length, report = 1.0, None
        for attempt in range(1, most + 1):
            if proposal is None or redamps:
                proposal = self._curvature.propose(rule.damping, self._previous())
                length = 1.0 if proposal is None else self._within(proposal)
            if proposal is None:
                rule.refuse()
                continue
            report = self._try(closure, loss, rule.damping, proposal, length, before, attempt)
            lower = report.actual < 0
            if lower or not (self._searches or math.isnan(report.actual)):
                rule.accept(report.ratio if lower else 0.0)
                self._remember(proposal.step, length)
                self.last_step = report
                return
            self._move(before, None, 0.0)
            if redamps:
                rule.refuse()
            else:
                length /= 2
        if not redamps:
            rule.refuse()
        self._forget()
        self.last_step = _refused(loss, rule.damping, report)

    def _within(self, proposal: Proposal) -> float:
        """The length of a step inside the trust region."""
        if self._limit is None:
            return 1.0
        size = float(proposal.bend.sqrt())
        return min(1.0, self._limit / size) if size > 0 else 1.0

    def _try(
        self,
        closure: Callable[[], Residuals],
        loss: float,
        damping: float,
        proposal: Proposal,
        length: float,
        before: list[Tensor],
        attempt: int,
    ) -> StepReport:
        """Moves the weights and looks at the loss there."""
        self._move(before, proposal.step, length)
        after = Terms(closure()).loss.detach()
        found = torch.stack([after.double(), proposal.change(length).double()]).tolist()
        actual = found[0] - loss if math.isfinite(found[0]) else math.nan
        numbers = tuple(proposal.coefficients.tolist())
        return StepReport(loss, found[1], actual, damping, length, numbers, attempt)

    @torch.no_grad()
    def _move(self, before: list[Tensor], step: Direction | None, length: float) -> None:
        for number, (parameter, old) in enumerate(zip(self._trained, before, strict=True)):
            # Past autograd's version: the graph at the weights of before is used again there.
            parameter.data.copy_(old)
            if step is not None:
                parameter.data.add_(step[number], alpha=length)

    def _previous(self) -> Direction | None:
        found = [self.state[p].get("step") for p in self._trained if p in self.state]
        return found if len(found) == len(self._trained) else None

    @torch.no_grad()
    def _remember(self, step: Direction, length: float) -> None:
        if self._remembers:
            for parameter, part in zip(self._trained, step, strict=True):
                self.state[parameter]["step"] = part * length

    def _forget(self) -> None:
        """A direction that led nowhere is no help."""
        self.state.clear()

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._curvature.remove()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """All parameters step together, so there is one group."""
        if self.param_groups:
            raise InvalidOptionError("param_group", sorted(param_group), "left out: one group only")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        return {**super().state_dict(), "curvature": self._curvature.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a ``state_dict``; the run goes on bit for bit.

        Raises:
            StateMismatchError: Where parameters or the curvature differ.
        """
        rest = dict(state_dict)
        saved = rest.pop("curvature", None)
        if not isinstance(saved, dict) or bool(saved) != (not self._curvature.redamps):
            raise StateMismatchError(
                "The state is not that of a GaussNewton with the same curvature; build it with "
                "the curvature that was saved."
            )
        self._curvature.load_state_dict(saved)
        super().load_state_dict(rest)


def _refused(loss: float, damping: float, last: StepReport | None) -> StepReport:
    """The report of a step that was not taken."""
    attempts = last.attempts if last else 0
    numbers = last.coefficients if last else ()
    return StepReport(loss, 0.0, 0.0, damping, 0.0, numbers, attempts)
