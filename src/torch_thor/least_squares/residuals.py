"""What a closure returns: terms of residuals, each with its own rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from torch_thor.options.errors import require

Residuals: TypeAlias = Tensor | Sequence[Tensor]

_ALLOWED = "a tensor of residuals [N, ...], or several in a tuple or list: not the loss"


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
