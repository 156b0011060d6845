"""The type of a forward pass: what a workload asks for, where the device is made for it."""

import torch

from torch_thor import multiplies_bfloat16


def forward_type(asked: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Returns the type for autocast, or None for float32.

    A CPU that only emulates bfloat16 took ten times as long in it as in float32.

    Args:
        asked: Type that a workload asks for, or None for float32.
        device: Where the model is.
    """
    emulated = asked == torch.bfloat16 and not multiplies_bfloat16(device)
    return None if emulated else asked


def autocast(asked: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Returns the context of a forward pass, see ``forward_type``."""
    dtype = forward_type(asked, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
