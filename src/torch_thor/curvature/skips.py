"""Steps that are left out because a gradient is not finite: counted, and said after a few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import lots_of, norms
from torch_thor.options.errors import NonFiniteGradientError
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from torch import nn

_PATIENCE = 3


@dataclass
class SkippedSteps:
    """How often, and how often in a row.

    Args:
        total: Since the optimizer was built, or since the checkpoint's was.
        in_a_row: Since the last step that was taken.
    """

    total: int = 0
    in_a_row: int = 0

    def leave_out(self, step: int, model: nn.Module, *, raises: bool) -> None:
        """Counts a step, or raises.

        Args:
            step: Steps taken so far.
            model: Whose gradients are not finite.
            raises: Whether that is an error.

        Raises:
            NonFiniteGradientError: If so.
        """
        if raises:
            raise NonFiniteGradientError(
                f"At step {step} {describe_nonfinite(model)}; nothing was changed. "
                "Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )
        self.count(step, model)

    def count(self, step: int, model: nn.Module) -> None:
        """Counts one; the third in a row is a warning, and no other one.

        Args:
            step: Steps taken so far.
            model: Whose gradients are not finite.
        """
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row == _PATIENCE:
            warn(
                f"The last {_PATIENCE} steps were skipped (after {step} that were taken), because "
                f"{describe_nonfinite(model)}. Nothing trains until that ends; see "
                "optimizer.skipped_steps. Look at the loss and its inputs, lower the learning "
                "rate, or pass Refresh(on_nonfinite='raise') to stop at the first one."
            )


def describe_nonfinite(model: nn.Module) -> str:
    """Says which parameter is the first whose gradient is not finite; waits for the device."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = [local(parameter.grad)]
            if not math.isfinite(norms(lots_of(gradient), gradient)[0].item()):
                return f"the gradient of {name!r} holds NaN or Inf, or its norm overflows"
    return "the norm of all gradients overflows"
