"""K-FAC's direction in front of the exact quadratic model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.least_squares.products import JacobianProducts
from torch_thor.least_squares.quadratic import Direction, Proposal, best_in_span
from torch_thor.options.curvature import Refresh, Statistics, balanced_damping
from torch_thor.preconditioner import Preconditioner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.least_squares.residuals import Terms


class _Damped(Preconditioner):
    """A preconditioner whose λ is set from step to step."""

    damping = 1.0

    def _begin(self) -> dict[nn.Parameter, float]:
        super()._begin()
        return dict.fromkeys((layer.weight for layer in self.engine.layers), self.damping)


class KroneckerCurvature:
    """A ⊗ G of each layer, G from residuals of random signs, which is Gauss–Newton's.

    Args:
        model: The model.
        parameters: What is trained.
        interval: Steps between refreshes.
        seed: Of the signs.

    Attributes:
        redamps: Whether another λ costs little: it costs a refresh.
    """

    redamps = False

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], *, interval: int, seed: int
    ) -> None:
        self._trained = list(parameters)
        self._engine = _Damped(
            model,
            damping=balanced_damping(1.0),
            split=None,
            power=1.0,
            factor_interval=interval,
            statistics=Statistics(0.95, rows=None, fisher="mc", loss_reduction="sum", seed=seed),
            refresh=Refresh(stagger=False, on_nonfinite="ignore"),
        )
        self._engine.engine.serve(self._trained)
        # On the CPU, so that every device draws alike.
        self._signs = torch.Generator("cpu").manual_seed(seed)
        self._products: JacobianProducts | None = None

    def begin(self, trained: Sequence[nn.Parameter]) -> None:
        """Drops the calls of earlier forwards; steps are of these parameters."""
        self._trained = list(trained)
        self._engine.engine.follow()
        self._engine.engine.discard()

    def observe(self, terms: Terms) -> None:
        """Takes the gradient, the statistics, and what products need."""
        residuals = terms.flat
        self._residuals = residuals.detach()
        if self._engine.wants_statistics:
            drawn = torch.randint(2, residuals.shape, generator=self._signs, device="cpu")
            signs = (2 * drawn - 1).to(residuals)
            # G is a sum over rows; the engine divides by the samples of the largest term.
            self._engine.fisher_backward((signs @ residuals) * math.sqrt(max(terms.rows)))
        for parameter in self._trained:
            parameter.grad = None
        residuals.backward(self._residuals, retain_graph=True)
        self._gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self._trained
        ]
        self._terms = residuals

    @property
    def scale(self) -> Tensor:
        """The mean square of a residual's gradient, of random signs: a first λ's measure."""
        signs = torch.randint(2, self._residuals.shape, generator=self._signs, device="cpu")
        pulled: tuple[Tensor | None, ...] = torch.autograd.grad(
            self._terms,
            self._trained,
            (2 * signs - 1).to(self._residuals),
            retain_graph=True,
            allow_unused=True,
        )
        squares = [g.square().sum() for g in pulled if g is not None]
        return torch.stack(squares).sum() / len(self._residuals)

    def propose(self, damping: float, previous: Direction | None) -> Proposal:
        """The best in the span of K-FAC's direction, of other parameters' and of the previous step.

        Args:
            damping: λ.
            previous: The previous step.
        """
        self._engine.damping = damping
        self._engine.step()
        engine = self._engine.engine
        curved = {p for layer in engine.layers for p in layer.parameters}
        pairs = list(zip(self._trained, self._gradients, strict=True))
        inside = [
            p.grad if p in curved and p.grad is not None else torch.zeros_like(p) for p, _ in pairs
        ]
        directions: list[Direction] = [inside]
        if any(p not in curved for p, _ in pairs):
            directions.append([torch.zeros_like(p) if p in curved else g for p, g in pairs])
        if previous is not None:
            directions.append(previous)
        for layer in engine.layers:
            layer.armed = False  # backwards of products are no statistics
        products = JacobianProducts(self._terms, self._trained)
        moved = [products(direction) for direction in directions]
        return best_in_span(directions, moved, self._residuals, damping)

    def end(self) -> None:
        """Lets go of the graph, and listens again."""
        del self._terms, self._gradients, self._residuals
        for parameter in self._trained:
            parameter.grad = None
        self._engine.engine.discard()

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._engine.remove()

    def state_dict(self) -> dict[str, Any]:
        """Factors, inverses, and where the signs are."""
        return {"curvature": self._engine.state_dict(), "signs": self._signs.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a ``state_dict``."""
        self._engine.load_state_dict(state["curvature"])
        self._signs.set_state(state["signs"].cpu())
