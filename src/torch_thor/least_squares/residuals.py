"""What a closure returns: terms of residuals, each with its own rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from torch_thor.options.errors import NonFiniteGradientError, require

Residuals: TypeAlias = Tensor | Sequence[Tensor]

_ALLOWED = "a tensor of residuals [N, ...], or several in a tuple or list: not the loss"
NOT_FINITE = (
    "The gradients of the residuals are not finite, though residuals are: look for a root or a "
    "norm at zero. Weights and λ are as they were."
)


def require_exact_type(name: str, dtype: torch.dtype) -> None:
    """Raises ``InvalidOptionError`` for half precision, whose kernel has no Cholesky factor."""
    allowed = "of float32 or float64: leave autocast out, or use curvature='kronecker'"
    require(name, dtype, dtype in (torch.float32, torch.float64), allowed)


class Terms:
    """Residuals r of a loss ½ Σ_terms mean over rows of ‖row‖², which is ½ Σ of scaled squares.

    Args:
        returned: What the closure returned.

    Attributes:
        rows: Rows of each term.
        scaled: Each term ÷ √rows as a matrix ``[rows, columns]``, with its graph.
    """

    def __init__(self, returned: object) -> None:
        found = [returned] if isinstance(returned, Tensor) else returned
        valid = isinstance(found, (tuple, list)) and len(found) > 0
        require("residuals", returned, valid, _ALLOWED)
        assert isinstance(found, (tuple, list))  # noqa: S101 (for the type checker)
        for term in found:
            require("residuals", term, isinstance(term, Tensor), _ALLOWED)
            require("residuals", term, term.dim() > 0 and term.numel() > 0, _ALLOWED)
            require("residuals", term.dtype, not term.is_complex(), "real: torch.view_as_real(...)")
        self.rows = tuple(len(term) for term in found)
        self.scaled = [term.reshape(len(term), -1) / math.sqrt(len(term)) for term in found]

    @property
    def flat(self) -> Tensor:
        """All scaled residuals, term by term, column by column: ``[n]``."""
        return torch.cat([term.mT.flatten() for term in self.scaled])

    @property
    def values(self) -> Tensor:
        """The same outside the graph."""
        return self.flat.detach()

    @property
    def loss(self) -> Tensor:
        """½ Σ of scaled squares."""
        flat = self.flat
        return 0.5 * (flat @ flat)

    def check(self) -> float:
        """Returns the loss as a number, of residuals that a step can begin with.

        Raises:
            NonFiniteGradientError: Where they are not finite.
            ValueError: Where they have no gradient.
        """
        if not any(term.requires_grad for term in self.scaled):
            raise ValueError(
                "No residual depends on a parameter that trains. Compute residuals from the "
                "model's outputs, without detach() or no_grad()."
            )
        loss = float(self.loss.detach())
        if not math.isfinite(loss):
            bad = [int((~torch.isfinite(term)).sum()) for term in self.scaled]
            number = next((number for number, count in enumerate(bad) if count), 0)
            raise NonFiniteGradientError(
                f"The loss is {loss} before the step: term {number} of the residuals has "
                f"{bad[number]} of {self.scaled[number].numel()} values that are not finite. "
                "Weights and λ are as they were; look at that term's points."
            )
        return loss
