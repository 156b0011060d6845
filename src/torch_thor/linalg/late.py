"""Numbers of a device on their way to the host, which does not wait for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def is_captured(device: torch.device) -> bool:
    """Whether what is done now becomes part of a graph, which the host only replays."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class Late:
    """A copy that is under way."""

    numbers: Tensor
    arrival: torch.Event | None  # None: it is there

    @classmethod
    def begin(cls, numbers: Tensor) -> Late:
        """Sends a tensor without waiting for it."""
        if numbers.device.type == "cpu":
            return cls(numbers.clone(), None)
        there = torch.empty_like(numbers, device="cpu", pin_memory=True)
        there.copy_(numbers, non_blocking=True)
        arrival = torch.Event(numbers.device)
        arrival.record()
        return cls(there, arrival)

    def __deepcopy__(self, memo: dict[int, Any]) -> Late:
        """A copy has come: events can't be copied."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return Late(self.numbers.clone(), None)

    @property
    def has_come(self) -> bool:
        """Whether it can be read without waiting."""
        return self.arrival is None or bool(self.arrival.query())

    def read(self) -> Any:
        """Returns the tensor's ``tolist()``, once it has come."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.numbers.tolist()
