"""A loss that is a sum of squares, whose residuals an optimizer may ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thor_bench.tasks.trees import named

_ALLOWED = "it must return what should be zero: a tensor [samples, ...], or several in a tuple"


@dataclass(frozen=True)
class Squares:
    """The loss ½ Σ_terms mean over rows of ‖row‖², to be a task's ``loss``.

    Every optimizer trains by it; ``gauss-newton`` by its residuals.

    Attributes:
        residuals: ``(model, batch) -> terms``: what should be zero, a tensor ``[samples, ...]``, or
            several in a tuple or list, each a term with rows of its own. To weigh a term, multiply
            it by the root of its weight.
    """

    residuals: Callable[[Any, Any], Any]

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Returns the loss of a batch.

        Raises:
            TypeError: There are no residuals.
        """
        halves = [0.5 * term.square().sum() / len(term) for term in self.terms(model, batch)]
        return torch.stack(halves).sum()

    def terms(self, model: Any, batch: Any) -> tuple[Tensor, ...]:
        """Returns the residuals of a batch, term by term.

        Raises:
            TypeError: There are none.
        """
        told = self.residuals(model, batch)
        terms = tuple(told) if isinstance(told, tuple | list) else (told,)
        rows = [isinstance(one, Tensor) and one.dim() > 0 and one.numel() > 0 for one in terms]
        if not rows or not all(rows):
            raise TypeError(f"residuals returned {named(told)}; {_ALLOWED}")
        return terms
