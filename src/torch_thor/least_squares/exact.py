"""The exact Gauss–Newton step, through a matrix as small as residuals or parameters are few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_thor.capture.followed import FollowedModel
from torch_thor.capture.hooks import ModelHooks
from torch_thor.least_squares.jacobian import CallRecorder, Coordinates, rows_of
from torch_thor.least_squares.products import JacobianProducts
from torch_thor.least_squares.quadratic import Direction, Proposal
from torch_thor.options.errors import InvalidOptionError
from torch_thor.options.update import Base

if TYPE_CHECKING:
    from torch_thor.least_squares.residuals import Terms

_MOST_OTHERS = 256  # entries without a layer, each a backward of its own
_AGREEMENT = 1e-3


class ExactCurvature:
    """(JᵀJ + λ)⁻¹ Jᵀr by a Cholesky factorization of J Jᵀ or of JᵀJ, whichever is smaller.

    Args:
        model: The model.
        parameters: What is trained.

    Attributes:
        redamps: Whether another λ costs little.
    """

    redamps = True

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._model, self._parameters = model, list(parameters)
        self._recorder = CallRecorder()
        self._hooks = ModelHooks(self._recorder)
        self._followed = FollowedModel(model, (), (), Base(), stagger=False)
        self._follow()

    def _follow(self) -> None:
        self._followed.serve(self._parameters)
        self._followed.find()
        layers = self._followed.layers
        for layer in layers:
            layer.armed = True
        self._hooks.attach(layers)
        inside = self._followed.layer_of
        trained = [p for p in self._parameters if p.requires_grad]
        others = [p for p in trained if p not in inside]
        entries = sum(p.numel() for p in others)
        if entries > _MOST_OTHERS:
            names = [n for n, p in self._model.named_parameters() if any(p is o for o in others)]
            raise InvalidOptionError(
                "curvature",
                "exact",
                f"'kronecker' for this model: {entries} entries ({', '.join(names[:3])}) belong "
                f"to no linear or convolutional layer, and more than {_MOST_OTHERS} cost too much",
            )
        self._where = Coordinates(layers, others)
        self._is_checked = False

    def begin(self) -> None:
        """Gets ready for the closure's forward."""
        if not self._followed.is_current():
            self._follow()
        self._recorder.start()

    def observe(self, terms: Terms) -> None:
        """Takes the Jacobian at the weights as they are."""
        self._recorder.is_on = False
        residuals = terms.flat
        matrix = rows_of(terms, self._recorder.calls, self._where)
        self._recorder.calls = []
        if self._where.others:
            self._add_others(matrix, residuals)
        if not self._is_checked:
            self._check(matrix, residuals)
        self._matrix, self._residuals = matrix, residuals.detach()
        rows, columns = matrix.shape
        self._gram = matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix

    def _add_others(self, matrix: Tensor, residuals: Tensor) -> None:
        """Columns of parameters of no layer, an entry at a time."""
        products = JacobianProducts(residuals, self._where.others)
        column = self._where.in_layers
        units = [torch.zeros_like(p) for p in self._where.others]
        for unit in units:
            for entry in unit.view(-1):
                entry.fill_(1.0)
                matrix[:, column] = products(units)
                entry.zero_()
                column += 1

    def _check(self, matrix: Tensor, residuals: Tensor) -> None:
        """The gradient by rows must be autograd's."""
        wanted = [p for p in self._parameters if p.requires_grad]
        gradients = torch.autograd.grad(
            residuals, wanted, residuals.detach(), retain_graph=True, allow_unused=True
        )
        found = self._where.split(matrix.mT @ residuals.detach())
        zero = residuals.new_zeros(())
        errors = [
            (zero if g is None else g) - found.get(p, zero)
            for p, g in zip(wanted, gradients, strict=True)
        ]
        error = torch.stack([one.square().sum() for one in errors]).sum().sqrt()
        size = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        rounding = 100 * torch.finfo(matrix.dtype).eps * matrix.norm() * residuals.norm()
        if bool(error > _AGREEMENT * size + rounding):
            raise ValueError(
                "The rows of the residuals do not give their gradient. With curvature='exact' row "
                "i must depend on row i of the network's inputs alone (no batch norm), and "
                "derivatives must come from torch_thor.derivatives, not from torch.autograd.grad. "
                "Otherwise say curvature='kronecker'."
            )
        self._is_checked = True

    @property
    def scale(self) -> Tensor:
        """The mean eigenvalue of the smaller matrix, by which a first λ is measured."""
        return self._gram.diagonal().mean()

    def propose(self, damping: float, previous: Direction | None) -> Proposal | None:  # noqa: ARG002
        """The minimum of the damped model, which no other direction betters; ``None``: λ too small.

        Args:
            damping: λ.
            previous: The previous step.
        """
        matrix, residuals, gram = self._matrix, self._residuals, self._gram.clone()
        gram.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            return None
        by_rows = len(gram) == len(matrix)
        target = residuals if by_rows else matrix.mT @ residuals
        solution = torch.cholesky_solve(target.unsqueeze(1), factor).squeeze(1)
        step = -(matrix.mT @ solution) if by_rows else -solution
        moved = matrix @ step
        found = self._where.split(step)
        whole = [found.get(p, torch.zeros_like(p)) for p in self._parameters]
        one = moved.new_ones(1)
        return Proposal(whole, moved @ residuals, moved @ moved, one)

    def end(self) -> None:
        """Lets go of the matrix."""
        del self._matrix, self._gram, self._residuals

    def remove(self) -> None:
        """Takes every hook off the model."""
        self._hooks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing in."""
