"""The GradScaler behind a step."""

from __future__ import annotations

import sys

import torch
from torch.amp import grad_scaler

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
