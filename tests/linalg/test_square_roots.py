"""Inverse square roots by products, against eigendecompositions in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oracle import inverse_power
from torch_thor.linalg.square_roots import LADDER, Rung, inverse_square_root, rungs_for


def matrices_of(condition: float, size: int, count: int = 3) -> Tensor:
    """Symmetric matrices with eigenvalues spread from 1 / condition to 1, scaled apart."""
    bases = torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64)).Q
    values = torch.logspace(0, -math.log10(condition), size, dtype=torch.float64)
    scales = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)[:count]
    return (bases * values) @ bases.mT * scales.view(-1, 1, 1)


def roots_of(matrices: Tensor) -> Tensor:
    return torch.stack([inverse_power(one, 0.5) for one in matrices])


def error(found: Tensor, expected: Tensor) -> float:
    """Largest relative error (Frobenius) of a matrix."""
    difference = torch.linalg.matrix_norm(found.double() - expected)
    return float((difference / torch.linalg.matrix_norm(expected)).max())


@given(st.integers(2, 40), st.floats(0.0, 12.0))
def test_float64_is_exact_at_any_condition(size: int, exponent: float) -> None:
    matrices = matrices_of(10**exponent, size)
    for condition in (10**exponent * size, math.inf):
        found, good = inverse_square_root(matrices, condition)
        assert good.all()
        # The eigendecomposition has an error of this order itself.
        assert error(found, roots_of(matrices)) < 1e-13 * 10**exponent + 1e-12


@given(st.integers(2, 40), st.floats(0.0, 5.0))
def test_float32_is_as_accurate_as_its_type_allows(size: int, exponent: float) -> None:
    matrices = matrices_of(10**exponent, size).float()
    for condition in (10**exponent * size, math.inf):
        found, good = inverse_square_root(matrices, condition)
        assert good.all()
        assert error(found, roots_of(matrices.double())) < 3e-7 * 10**exponent + 1e-5


def test_a_bound_that_is_known_saves_steps() -> None:
    counts = [len(rungs_for(10.0**n, torch.float32)) for n in range(8)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[3] == 5
    assert len(rungs_for(math.inf, torch.float32)) == counts[-1] == 7


@pytest.mark.parametrize("pair", list(pairwise(LADDER)))
def test_each_rung_maps_its_interval_to_the_next_ones(pair: tuple[Rung, Rung]) -> None:
    rung, following = pair
    x = torch.linspace(rung.lower, rung.upper, 100_001, dtype=torch.float64)
    image = x * (rung.a + rung.b * x**2 + rung.c * x**4)
    # An error that is as large at the ends as anywhere between is the least possible.
    assert image.min().item() == pytest.approx(following.lower, rel=1e-5)
    assert image.max().item() == pytest.approx(following.upper, rel=1e-5)
    assert image[0].item() == pytest.approx(following.lower, rel=1e-5)


def test_the_last_rung_leaves_no_error_of_float32() -> None:
    x = torch.linspace(LADDER[-1].lower, LADDER[-1].upper, 1001, dtype=torch.float64)
    image = x * (LADDER[-1].a + LADDER[-1].b * x**2 + LADDER[-1].c * x**4)
    assert (image - 1).abs().max() < 2e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_no_root_is_marked_and_spoils_no_other(dtype: torch.dtype) -> None:
    good = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    stack = torch.stack([good, -torch.eye(3), torch.zeros(3, 3), good.clone(), good])
    stack[3, 0, 0] = torch.nan
    found, mask = inverse_square_root(stack.to(dtype), 100.0)
    assert mask.tolist() == [True, False, False, False, True]
    for index in (0, 4):
        torch.testing.assert_close(found[index].float(), torch.diag(torch.tensor([0.5, 1.0, 2.0])))


def test_a_condition_beyond_the_bound_is_marked() -> None:
    """Damping says what the condition can be; a matrix that is worse is tried again elsewhere."""
    _, mask = inverse_square_root(matrices_of(1e6, 12).float(), 10.0)
    assert not mask.any()
