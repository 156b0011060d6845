"""Numbers on their way: what a copy of them holds."""

import copy
from typing import Any

import torch

from torch_thor.linalg.late import Late


class _Event:
    """One of a device, which can't be copied either."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers

    def synchronize(self) -> None:
        """The device writes before the host goes on."""
        self._numbers.fill_(2.0)

    def __getstate__(self) -> None:
        raise TypeError("cannot pickle 'torch.Event' object")


def test_a_copy_waits_for_what_it_copies() -> None:
    there = torch.zeros(2)
    event: Any = _Event(there)
    twin = copy.deepcopy(Late(there, event))
    there.zero_()
    assert twin.has_come
    assert twin.read() == [2.0, 2.0]
