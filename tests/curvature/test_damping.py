"""Damping modes: what is added to each factor's diagonal."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import damped
from torch_thor import Damping
from torch_thor.curvature.damping import RULES, mean_eigenvalue

Mode = Literal["both", "sqrt", "pi", "relative"]
MODES: list[Mode] = ["both", "sqrt", "pi", "relative"]


@given(st.sampled_from(MODES), st.floats(1e-6, 10), st.integers(1, 4), st.integers(1, 4))
def test_shifts_are_those_of_the_formulas(mode: Mode, value: float, d_a: int, d_g: int) -> None:
    A, G = (root @ root.T for root in (torch.randn(d_a, 5).double(), torch.randn(d_g, 5).double()))
    means = [
        mean_eigenvalue(factor.trace().reshape(1, 1), size) for factor, size in ((A, d_a), (G, d_g))
    ]
    shifts = RULES[mode].shifts(torch.tensor([[value]], dtype=torch.float64), *means)
    for shift, before, after in zip(shifts, (A, G), damped(A, G, value, mode), strict=True):
        torch.testing.assert_close(shift.reshape(()), (after - before)[0, 0])


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_of_zeros_is_damped_by_something_positive_and_finite(mode: Mode) -> None:
    zero, some = torch.zeros(1, 1), torch.ones(1, 1)
    for traces in [(zero, some), (some, zero), (zero, zero)]:
        means = [mean_eigenvalue(trace, size) for trace, size in zip(traces, (3, 2), strict=True)]
        shifts = RULES[mode].shifts(torch.tensor([[0.1]]), *means)
        assert all(bool((shift > 0).all() and shift.isfinite().all()) for shift in shifts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"value": 0.0}, ["damping=0.0", "> 0"]),
        ({"value": -1.0}, ["damping=-1.0", "> 0"]),
        ({"mode": "none"}, ["mode='none'", "'both'", "'sqrt'", "'pi'", "'relative'"]),
    ],
)
def test_bad_damping_is_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^Invalid damping") as caught:
        Damping(**arguments)
    assert [word for word in words if word not in str(caught.value)] == []
