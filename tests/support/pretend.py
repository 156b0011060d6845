"""The device "pretend": memory of the CPU, but mixing it with the CPU's tensors is an error.

    make test ARGS="--device pretend"

What a card would refuse is found without one: tensors and generators that name no device or the
wrong one. Needs a C++ compiler, and torch compiles the device once, in half a minute.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import backend_registration, cpp_extension

from torch_thor.linalg import foreach

if TYPE_CHECKING:
    from torch import Tensor

NAME = "pretend"


class _Module(ModuleType):
    """What torch asks of ``torch.<device>``."""

    def __init__(self, extension: Any) -> None:
        """Keep what was compiled."""
        super().__init__(f"torch.{NAME}")
        self._extension = extension

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def device(self, _device: object = None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        self._extension.default_generator().manual_seed(seed)

    def get_rng_state(self, _device: object = None) -> Tensor:
        state: Tensor = self._extension.default_generator().get_state()
        return state

    def set_rng_state(self, state: Tensor, _device: object = None) -> None:
        self._extension.default_generator().set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def start() -> None:
    """Make the device known to torch, for the rest of the process."""
    source = Path(__file__).with_suffix(".cpp")
    extension = cpp_extension.load("torch_thor_pretend", [str(source)], extra_cflags=["-O1"])
    backend_registration.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module(extension))
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=True)
    extension.start()
    foreach._DEVICES |= {NAME}  # torch splits lists for it, so they go where a card's go
