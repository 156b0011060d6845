"""What is asked of the device, and what happens where nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torch_thor.linalg.timing import affordable, free_memory, multiplies_bfloat16

if TYPE_CHECKING:
    import pytest

CPU = torch.device("cpu")


def test_free_memory_is_known_where_somebody_says_it() -> None:
    assert free_memory(torch.device("meta")) is None
    free = free_memory(CPU)
    assert free is None or free > 0


def test_sizes_are_left_alone_where_nobody_knows() -> None:
    assert affordable((1, 1 << 30), torch.device("meta")) == (1, 1 << 30)


def test_sizes_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_thor.linalg.timing.free_memory", lambda _: 4 * 48 * 100**2)
    assert affordable((10, 20, 99, 100, 101, 1000), CPU) == (10, 20, 99, 100)
    assert affordable((200, 300, 400), CPU) == (200, 300), "there is always a choice"


def test_a_torch_that_does_not_know_its_processor_multiplies_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name is private, so that another torch may lack it (case 57)."""
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert multiplies_bfloat16(CPU) is False
