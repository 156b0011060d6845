"""Rates that fall while steps overshoot, and rise again when they don't.

Along a step d the loss has the slope ⟨g, d⟩ before it and ⟨g′, d⟩ after it, g′ being the next
gradient. ρ = ⟨g′, d⟩ ÷ ⟨g, d⟩ is 1 where the slope stays, 0 where the step ended at the lowest
place along d, and −1 where it ended as high as it began (trapezoid rule): such steps go back and
forth across a valley, however good their direction. Batches' noise brings ρ nearer to 0, and so
never shortens a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from torch_thor.directions.banded import gradient_of
from torch_thor.layers.shards import is_dtensor
from torch_thor.linalg.late import Late, is_captured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.update.momentum import Moving

EVERY = 10  # steps between two looks, each of which is at two steps
_PART = 8  # the first of so many parts of a weight's rows stands for all
_KEPT = 0.5  # of the old slopes at each look
_LEAST = 1e-3  # of the rate
_MOST = 2.0  # times the slope before, or one outlier among batches would stand for many looks


@dataclass
class _Step:
    """A step that was taken, until the gradient that it led to is there."""

    direction: Tensor  # d of all that is looked at, in one row
    slope: Tensor  # ⟨g, d⟩


class Overshoot:
    """What share of the learning rates steps are taken with.

    Args:
        limit: Where −ρ is larger than this, the share falls.

    Attributes:
        share: In (0, 1]. Each look multiplies it by exp(ρ + limit).
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self.share = 1.0
        self._before = self._after = 0.0  # running averages of both slopes
        self._step: _Step | None = None
        self._coming: Late | None = None  # both slopes of a step
        self._is_due = False  # whether the coming step is to be remembered

    def look_back(self, curved: Sequence[nn.Parameter], steps: int) -> None:
        """Compares the last step's slope with that of the present gradients, if it was a look.

        Args:
            curved: All that have curvature and a gradient.
            steps: How many were taken.
        """
        captured = bool(curved) and is_captured(curved[0].device)
        self._is_due = self._limit is not None and steps % EVERY == 0 and not captured
        if self._is_due:
            self._learn()
        if self._step is None or captured:
            self._step = None
            return
        step, self._step = self._step, None
        gradients = _row([gradient_of(p) for p in _looked_at(curved)])
        if gradients is None or gradients.shape != step.direction.shape:
            return
        direction, before = step.direction.to(gradients), step.slope.to(gradients)
        self._coming = Late.begin(torch.stack((before, gradients @ direction)))
        if gradients.device.type == "cpu":  # where nobody waits
            self._learn()

    @torch.compiler.disable  # type: ignore[untyped-decorator] # one step in ten
    def follow(self, moving: Sequence[Moving], directions: Mapping[nn.Parameter, Tensor]) -> None:
        """Remembers a step that is about to be taken, if it is its turn."""
        if not self._is_due:
            return
        looked_at = _looked_at([p for one in moving for p in one.parameters])
        steps = [directions[p] for p in looked_at]
        if len(moving) > 1:  # of groups, which may have rates of their own
            rate_of = {p: one.group["lr"] for one in moving for p in one.parameters}
            steps = [step * rate_of[p] for step, p in zip(steps, looked_at, strict=True)]
        direction, gradients = _row(steps), _row([gradient_of(p) for p in looked_at])
        if direction is not None and gradients is not None:
            self._step = _Step(direction, gradients @ direction)

    def _learn(self) -> None:
        """Takes the slopes in that have come; those that are not finite tell nothing."""
        if self._coming is None or self._limit is None:
            return
        before, after = self._coming.read()
        self._coming = None
        if not (math.isfinite(before) and math.isfinite(after) and before):
            return
        most = _MOST * abs(before)
        after = max(-most, min(most, after))
        self._before = _KEPT * self._before + (1 - _KEPT) * before
        self._after = _KEPT * self._after + (1 - _KEPT) * after
        ratio = self._after / self._before if self._before > 0 else -1.0
        change = math.exp(max(-1.0, min(1.0, ratio + self._limit)))
        self.share = max(_LEAST, min(1.0, self.share * change))

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to hold; waits for the device."""
        self._learn()
        if self._limit is None:
            return {}
        kept = {"share": self.share, "before": self._before, "after": self._after}
        return {"overshoot": kept | ({} if self._step is None else vars(self._step))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what was saved; without it rates are whole."""
        self.__init__(self._limit)  # type: ignore[misc]
        saved = state.get("overshoot")
        if saved is not None and self._limit is not None:
            self.share, self._before, self._after = (
                saved[name] for name in ("share", "before", "after")
            )
            if "slope" in saved:
                self._step = _Step(saved["direction"].clone(), saved["slope"].clone())


def _looked_at(curved: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The weights that stand for all: those of the first one's device; none where any is sharded.

    Of sharded ones each rank would see others, and take another share.
    """
    weights = [p for p in curved if p.dim() > 1]
    if any(map(is_dtensor, weights)):
        return []
    return [p for p in weights if p.device == weights[0].device]


def _row(tensors: Sequence[Tensor]) -> Tensor | None:
    """Some rows of each tensor in one row, in float32 at least."""
    parts = [one[: max(1, len(one) // _PART)] for one in tensors]
    if not parts:
        return None
    flat = torch.cat([part.reshape(-1) for part in parts])
    return flat.to(torch.promote_types(flat.dtype, torch.float32), copy=True)
