"""The exact Gauss–Newton step, through the kernel of the residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.capture.followed import FollowedModel
from torch_thor.capture.hooks import ModelHooks
from torch_thor.least_squares.calls import CallRecorder
from torch_thor.least_squares.kernel import kernel_of
from torch_thor.least_squares.products import JacobianProducts
from torch_thor.least_squares.quadratic import Direction, Proposal
from torch_thor.least_squares.residuals import NOT_FINITE, require_exact_type
from torch_thor.options.errors import InvalidOptionError, NonFiniteGradientError
from torch_thor.options.update import Base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.least_squares.residuals import Terms

_MOST_OTHERS = 256  # entries without a layer, each a backward of its own
_AGREEMENT = 5e-3  # of a row, relative: ten times the rounding of TensorFloat32


class ExactCurvature:
    """(JᵀJ + λ)⁻¹ Jᵀr = Jᵀ (J Jᵀ + λ)⁻¹ r, by a Cholesky factorization of the kernel J Jᵀ.

    J is never there as a whole: layers give the kernel, and a backward the product with Jᵀ.

    Args:
        model: The model.
        parameters: What is trained.

    Attributes:
        redamps: Whether another λ costs little.
    """

    redamps = True

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._model, self._trained = model, list(parameters)
        self._recorder = CallRecorder()
        self._hooks = ModelHooks(self._recorder)
        self._followed = FollowedModel(model, (), (), Base(), stagger=False)
        self._followed.serve(self._trained)
        self._follow()

    def _follow(self) -> None:
        """Takes in what is in the model and trains."""
        self._followed.find()
        layers = [layer for layer in self._followed.layers if layer.adapter.sums_rows]
        inside = {parameter for layer in layers for parameter in layer.parameters}
        for layer in layers:
            layer.armed = True
        self._hooks.attach(layers)
        self._others = [p for p in self._trained if p.requires_grad and p not in inside]
        entries = sum(p.numel() for p in self._others)
        if entries > _MOST_OTHERS:
            others = set(self._others)
            names = [name for name, p in self._model.named_parameters() if p in others]
            raise InvalidOptionError(
                "curvature",
                "exact",
                f"'kronecker' for this model: {entries} entries ({', '.join(names[:3])}) belong "
                f"to no linear or convolutional layer, and more than {_MOST_OTHERS} cost too much",
            )
        self._steps = 0

    def begin(self, trained: Sequence[nn.Parameter]) -> None:
        """Gets ready for the closure's forward, and for steps of these parameters."""
        self._trained = list(trained)
        if not self._followed.is_current():
            self._follow()
        self._recorder.start()

    def observe(self, terms: Terms) -> None:
        """Forms the kernel at the weights as they are."""
        calls = self._recorder.stop()
        self._residuals = terms.flat
        require_exact_type("residuals", self._residuals.dtype)
        kernel = kernel_of(terms, calls)
        if self._others:
            columns = self._columns_of_others()
            kernel.addmm_(columns.mT, columns)
        self._kernel = kernel
        # Again and again, but ever more seldom: a head of zeros hides what the layers before do.
        self._steps += 1
        if self._steps & (self._steps - 1) == 0:
            self._check()

    def _columns_of_others(self) -> Tensor:
        """J for parameters of no layer, an entry at a time: ``[entries, n]``."""
        products = JacobianProducts(self._residuals, self._others)
        units = [torch.zeros_like(p) for p in self._others]
        columns = []
        for unit in units:
            for entry in unit.view(-1):
                entry.fill_(1.0)
                columns.append(products(units))
                entry.zero_()
        return torch.stack(columns)

    def _pull(self, cotangent: Tensor) -> list[Tensor]:
        """Jᵀ times a vector; a tensor for each parameter."""
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            self._residuals, self._trained, cotangent, retain_graph=True, allow_unused=True
        )
        pairs = zip(self._trained, found, strict=True)
        return [torch.zeros_like(p) if g is None else g for p, g in pairs]

    def _check(self) -> None:
        """The kernel by rows of calls must be autograd's."""
        residuals, sizes = self._residuals.detach(), self._kernel.diagonal()
        limits = torch.finfo(sizes.dtype)
        # Row by row at its own scale, so that no small term hides behind a large one.
        scale = sizes.clamp_min(max(float(sizes.max()) * limits.eps**2, limits.tiny)).rsqrt()
        # Of both signs and no size, so that no sum is right by chance.
        probe = torch.cos(torch.arange(len(residuals), device=residuals.device) * 1.7).to(residuals)
        wanted = JacobianProducts(self._residuals, self._trained)(self._pull(scale * probe))
        found = self._kernel @ (scale * probe)
        if bool((scale * (found - wanted)).abs().max() > _AGREEMENT * probe.norm()):
            raise ValueError(
                "The rows of the residuals are not those of the network's calls. With "
                "curvature='exact' row i must depend on row i of the inputs alone (no batch norm), "
                "layers must be called (not their weights used), and derivatives must come from "
                "torch_thor.derivatives, not from torch.autograd.grad. Otherwise say "
                "curvature='kronecker'."
            )

    @property
    def scale(self) -> float:
        """The mean eigenvalue of the kernel, by which a first λ is measured."""
        return float(self._kernel.diagonal().mean())

    def propose(self, damping: float, previous: Direction | None) -> Proposal | None:  # noqa: ARG002
        """The minimum of the damped model, which no other direction betters.

        Args:
            damping: λ.
            previous: The previous step.

        Returns:
            The step, or ``None`` where λ is too small for the kernel's rounding.
        """
        residuals, kernel = self._residuals.detach(), self._kernel.clone()
        kernel.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if bool(failed):
            if not bool(torch.isfinite(self._kernel).all()):
                raise NonFiniteGradientError(NOT_FINITE)
            return None
        solution = torch.cholesky_solve(residuals.unsqueeze(1), factor).squeeze(1)
        moved = damping * solution - residuals  # J d, as (J Jᵀ + λ) times the solution is r
        step = [-part for part in self._pull(solution)]
        return Proposal(step, moved @ residuals, moved @ moved, moved.new_ones(1))

    def end(self) -> None:
        """Lets go of the kernel and the graph."""
        self._recorder.stop()
        self._kernel = self._residuals = torch.empty(0)

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: no curvature outlives a step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing in."""
