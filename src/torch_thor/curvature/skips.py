"""Steps that are left out because a gradient is not finite: counted, and said after a few."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_thor.layers.shards import local
from torch_thor.linalg.foreach import is_asynchronous, lots_of, norms
from torch_thor.linalg.late import Late, is_captured
from torch_thor.options.errors import NonFiniteGradientError
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_PATIENCE = 3


class SkippedSteps:
    """How often, and how often in a row.

    Where the device leaves steps out by itself, it counts them too, and the host learns of it when
    that makes nobody wait, or when it is asked.
    """

    def __init__(self) -> None:
        self._told = self._in_a_row = 0
        self._count: Tensor | None = None  # of the device, beside those that the host knows
        self._copy: Late | None = None  # of that count, under way
        self._noted = self._known = 0  # steps that the device looked at; its count, as last learned
        self._noted_then = self._noted_known = 0  # those up to the copy, and to what it told last

    @property
    def total(self) -> int:
        """Since the optimizer was built, or since the checkpoint's was; waits for the device."""
        return self._told + (0 if self._count is None else int(self._count.item()))

    @total.setter
    def total(self, value: int) -> None:
        self.__init__()  # type: ignore[misc]
        self._told = value

    def end_row(self, found_inf: Tensor | None) -> None:
        """A step was taken; where others are left out on the device, there is room to count them.

        Made inside a graph, the room would be zero again in each replay.
        """
        self._in_a_row = 0
        if self._count is None and found_inf is not None and is_asynchronous(found_inf.device):
            self._count = torch.zeros_like(found_inf)

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
        self._told += 1
        self._add(1, step, model)

    def note(self, found_inf: Tensor, step: int, model: nn.Module) -> None:
        """Counts a step that the device leaves out by itself, if it does."""
        captured = is_captured(found_inf.device)
        if not captured:
            self._learn(step, model)
        if self._count is None:
            self._count = torch.zeros_like(found_inf)
        self._count.add_(found_inf)
        self._noted += 1
        if self._copy is None and not captured:
            self._copy, self._noted_then = Late.begin(self._count), self._noted

    def _learn(self, step: int, model: nn.Module) -> None:
        """Takes in what the device has counted, if the copy has come."""
        if self._copy is None or not self._copy.has_come:
            return
        count, noted = int(self._copy.read()), self._noted_then
        new, passed = count - self._known, noted - self._noted_known
        self._copy, self._known, self._noted_known = None, count, noted
        if new == passed:
            self._add(new, step - count, model)
        else:
            self._in_a_row = 0

    def _add(self, more: int, step: int, model: nn.Module) -> None:
        before, self._in_a_row = self._in_a_row, self._in_a_row + more
        if before < _PATIENCE <= self._in_a_row:
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
        self.total = state.get("skipped_steps", 0)


def describe_nonfinite(model: nn.Module) -> str:
    """Says which parameter is the first whose gradient is not finite; waits for the device."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = [local(parameter.grad)]
            if not math.isfinite(norms(lots_of(gradient), gradient)[0].item()):
                return f"the gradient of {name!r} holds NaN or Inf, or its norm overflows"
    return "a gradient was not finite"
