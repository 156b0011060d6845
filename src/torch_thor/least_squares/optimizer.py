"""Gauss–Newton: steps of sums of squares by their exact curvature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_thor.least_squares.exact import ExactCurvature
from torch_thor.least_squares.kronecker import KroneckerCurvature
from torch_thor.least_squares.levenberg import LevenbergMarquardt
from torch_thor.least_squares.residuals import NOT_FINITE, Residuals, Terms
from torch_thor.least_squares.search import Search, StepReport
from torch_thor.options.checks import DAMPING, NATURAL, POSITIVE, require_type
from torch_thor.options.errors import (
    InvalidOptionError,
    NonFiniteGradientError,
    StateMismatchError,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch_thor.least_squares.quadratic import Direction

_SAME = 1e-3  # what rounding may change of residuals, relative

Curvature: TypeAlias = Literal["exact", "kronecker"]


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
        _require_own(model, chosen)
        # λ and its growth change from step to step, so they stand where a checkpoint saves them.
        defaults = {"damping": None, "growth": 2.0, "floor": 0.0}
        super().__init__(chosen, defaults)
        self._first, self._adaptive = damping, adaptive
        self._searches, self._limit = line_search, trust_region
        self._remembers = momentum and curvature == "kronecker"
        self._trained: list[nn.Parameter] = self.param_groups[0]["params"]
        self._repeats = False  # whether the closure was found to
        self.last_step: StepReport | None = None
        self._curvature: ExactCurvature | KroneckerCurvature
        if curvature == "exact":
            self._curvature = ExactCurvature(model, self._trained)
        else:
            self._curvature = KroneckerCurvature(model, self._trained, interval=interval, seed=seed)

    @property
    def damping(self) -> float | None:
        """λ of the next step; ``None`` before the first, which measures it."""
        value: float | None = self.param_groups[0]["damping"]
        return value

    @torch.enable_grad()
    @sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
    def step(self, closure: Callable[[], Residuals]) -> Tensor:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Returns the residuals, with their graph.

        Returns:
            The loss before the step, a scalar outside the graph.

        Raises:
            InvalidOptionError: Where the closure returns no residuals, or autocast is on around it.
            NonFiniteGradientError: Where they or their gradients are not finite.
            ValueError: Where rows of the residuals are none of the network's (``"exact"``), where
                they change by themselves, or depend on nothing that trains. Weights and λ
                stay, as after the others.
        """
        curvature, group = self._curvature, self.param_groups[0]
        self._trained = [p for p in group["params"] if p.requires_grad]
        if not self._trained:
            raise ValueError("No parameter trains: all have requires_grad=False.")
        _require_no_autocast(self._trained[0].device.type)
        curvature.begin(self._trained)
        try:
            terms = Terms(closure())
            loss = terms.check()
            curvature.observe(terms)
            if not self._repeats:
                self._require_repeat(closure, terms.values)
            returned = terms.loss.detach()
            del terms
            rule = self._rule(returned.dtype)
            search = Search(closure, loss, self._trained, limit=self._limit, retries=self._searches)
            try:
                self.last_step, step = search.run(curvature, rule, self._previous())
            except BaseException:
                search.go_back()
                raise
        finally:
            curvature.end()
        self._remember(step)
        if self._adaptive:
            group["damping"], group["growth"] = rule.damping, rule.growth
        return returned

    def _rule(self, dtype: torch.dtype) -> LevenbergMarquardt:
        """λ as it stands; the first is measured."""
        group = self.param_groups[0]
        if group["damping"] is None:
            scale = float(self._curvature.scale)
            if not math.isfinite(scale):
                raise NonFiniteGradientError(NOT_FINITE)
            group["damping"] = self._first * scale
            group["floor"] = torch.finfo(dtype).eps * scale
        return LevenbergMarquardt(group["damping"], group["growth"], self._adaptive, group["floor"])

    def _require_repeat(self, closure: Callable[[], Residuals], values: Tensor) -> None:
        """A loss that changes by itself tells nothing of a step."""
        again = Terms(closure()).values
        same = again.shape == values.shape
        if not same or bool((again - values).norm() > _SAME * values.norm()):
            raise ValueError(
                "The closure returned other residuals when it was called again at the same "
                "weights. Draw points between steps, not in the closure, and leave dropout out."
            )
        self._repeats = True

    def _previous(self) -> Direction | None:
        found = [self.state[p].get("step") for p in self._trained if p in self.state]
        return found if len(found) == len(self._trained) else None

    def _remember(self, step: Direction | None) -> None:
        """Keeps a step as a direction; one that led nowhere is none."""
        self.state.clear()
        if self._remembers and step is not None:
            for parameter, part in zip(self._trained, step, strict=True):
                self.state[parameter]["step"] = part

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._curvature.remove()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """All parameters step together, so there is one group."""
        if self.param_groups:
            raise InvalidOptionError("param_group", sorted(param_group), "left out: one group only")
        super().add_param_group(param_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Refuses: hooks are one model's."""
        raise TypeError(
            "GaussNewton can't be copied. Build one on the copied model and load this one's "
            "state_dict()."
        )

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


def _require_no_autocast(device: str) -> None:
    """Raises where the step's own products would be in half precision."""
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        raise InvalidOptionError("autocast", dtype, "off around step(): begin it in the closure")


def _require_own(model: nn.Module, chosen: Sequence[object]) -> None:
    """Raises where not all are parameters of the model."""
    groups = sum(isinstance(one, dict) for one in chosen)
    require("params", f"{groups} groups", not groups, "parameters, not groups")
    own = set(model.parameters())
    others = sum(one not in own for one in chosen)
    require("params", f"{others} of another model", not others, "the model's own")
