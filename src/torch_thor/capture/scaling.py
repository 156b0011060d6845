"""The GradScaler behind a step."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import torch
from torch.amp import grad_scaler

from torch_thor.layers.shards import is_dtensor
from torch_thor.options.errors import require
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch_thor.capture.tracked import TrackedLayer

_LEAST_POWER = 4  # of 2; clipping by more than 16 is no such power
_POWER_ERROR = 0.01
_LOOKS = 2  # steps with statistics in which an unknown scale is looked for
_DEPTH = 12  # frames of wrappers (profilers, schedulers) between a scaler's step and ours


def calling_scaler() -> torch.amp.GradScaler | None:
    """The scaler whose ``step(optimizer)`` is running, if one is.

    A scaler tells an optimizer its scale only where that takes over unscaling and skipping, which
    Lightning's clipping does not allow and which ends with ``scaler.unscale_``.
    """
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame.f_back is None:
            return None
        frame = frame.f_back
        # Asking a user's frame for its locals would keep them alive as long as the frame is.
        if frame.f_code.co_filename == grad_scaler.__file__:
            owner = frame.f_locals.get("self")
            return owner if isinstance(owner, torch.amp.GradScaler) else None
    return None


class LossScale:
    """What losses are multiplied by before their backward, by a ``scaler`` that the user named."""

    def __init__(self) -> None:
        self.scaler: torch.amp.GradScaler | None = None
        self._looks = _LOOKS

    def in_force(self, layers: Iterable[TrackedLayer], *, ours: bool) -> float:
        """Returns the scale of the captured gradients of some layers.

        Args:
            layers: The layers.
            ours: Whether ``step()`` averages gradients over the ranks itself.

        Raises:
            InvalidOptionError: For a scaler of this rank alone, whose scale others don't know.
        """
        scaler = self.scaler or calling_scaler()
        if scaler is None or not scaler.is_enabled():
            if self._looks:
                self._looks -= 1
                _tell_scaled(layers)
            return 1.0
        allowed = "False with a GradScaler, whose scale is the rank's own: wrap the model in DDP"
        require("reduce_gradients", ours, not ours, allowed)
        return float(scaler.get_scale())


def _tell_scaled(layers: Iterable[TrackedLayer]) -> None:
    """Warns where gradients were unscaled by a GradScaler that nobody has told of.

    The gradient of a weight is Σ g aᵀ over the rows of its calls. Where that is 2ᵏ times what
    stands in ``.grad``, losses were scaled, as every GradScaler does unless told otherwise.
    """
    plain = [layer for layer in layers if _is_explained(layer)]
    if not plain:
        return
    ratio = _scale_of(min(plain, key=lambda layer: layer.weight.numel()))
    power = math.log2(ratio) if ratio > 0 and math.isfinite(ratio) else 0.0
    if round(power) >= _LEAST_POWER and abs(power - round(power)) < _POWER_ERROR:
        warn(
            f"The loss behind the gradients was multiplied by about 2^{round(power)}, and they "
            "were divided by it since: by a GradScaler? Its scale enters the curvature. Name "
            "it: use_scaler(scaler)."
        )


def _is_explained(layer: TrackedLayer) -> bool:
    """Whether the calls of a layer hold all rows of its gradient."""
    calls, gradient, shape = layer.ledger.read(), layer.weight.grad, layer.geometry
    dense = shape.matrices == 1 and shape.is_plain and layer.adapter.sums_rows
    whole = all(call.plan.scale == 1 and call.counted is None for call in calls)
    return bool(calls) and gradient is not None and dense and whole and not is_dtensor(gradient)


def _scale_of(layer: TrackedLayer) -> float:
    """What the calls' own gradient is a multiple of; waits for the device."""
    shape, gradient = layer.geometry, layer.weight.grad
    if gradient is None:
        return 1.0
    own = gradient.reshape(shape.outputs, shape.inputs).float()
    made = torch.zeros_like(own)
    for call in layer.ledger.read():
        made += call.gradients[0].float().mT @ call.inputs[0].float()[:, : shape.inputs]
    return float((made * own).sum() / own.square().sum())
