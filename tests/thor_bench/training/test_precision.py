"""Autocast only where the device has instructions for it."""

from __future__ import annotations

import pytest
import torch

from thor_bench.records.machine import describe_machine
from thor_bench.training.precision import autocast, forward_type

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "native", "taken"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.bfloat16, False, None),
        (torch.float16, False, torch.float16),
        (None, True, None),
    ],
)
def test_emulated_bfloat16_is_left_out(
    asked: torch.dtype | None,
    native: bool,
    taken: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thor_bench.training.precision.multiplies_bfloat16", lambda _device: native)
    assert forward_type(asked, CPU) == taken
    with autocast(asked, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (taken or torch.float32)


def test_the_machine_says_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr("thor_bench.records.machine.multiplies_bfloat16", lambda _, n=native: n)
        machine = describe_machine(CPU)
        assert machine.bfloat16 is native
        assert ("no bfloat16" in str(machine)) is not native
