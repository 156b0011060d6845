"""Steps that are left out because a gradient is not finite: counted, and said after a few."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import lots_of, norms
from torch_thor.options.errors import NonFiniteGradientError
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_PATIENCE = 3


class SkippedSteps:
    """How often, and how often in a row.

    Attributes:
        total: Since the optimizer was built, or since the checkpoint's was.
    """

    def __init__(self) -> None:
        self.total = self._in_a_row = 0

    def end_row(self) -> None:
        """A step was taken."""
        self._in_a_row = 0

    def leave_out(self, step: int, model: nn.Module, *, raises: bool) -> None:
        """Counts one after so many steps that were taken; the third in a row is a warning.

        Raises:
            NonFiniteGradientError: Instead, where the user wants that.
        """
        if raises:
            raise NonFiniteGradientError(
                f"At step {step} {describe_nonfinite(model)}; nothing was changed. "
                "Lower the learning rate, or pass Refresh(on_nonfinite='skip')."
            )
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row == _PATIENCE:
            warn(
                f"The last {_PATIENCE} steps were skipped (after {step} that were taken), because "
                f"{describe_nonfinite(model)}. Nothing trains until that ends; see "
                "optimizer.skipped_steps. Look at the loss and its inputs, lower the learning "
                "rate, or pass Refresh(on_nonfinite='raise') to stop at the first one."
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to hold."""
        return {"skipped_steps": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a count; checkpoints of version 0.1 have none."""
        self.total, self._in_a_row = state.get("skipped_steps", 0), 0


def describe_nonfinite(model: nn.Module) -> str:
    """Says which parameter is the first whose gradient is not finite; waits for the device."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = [local(parameter.grad)]
            if not math.isfinite(norms(lots_of(gradient), gradient)[0].item()):
                return f"the gradient of {name!r} holds NaN or Inf, or its norm overflows"
    return "the norm of all gradients overflows"
