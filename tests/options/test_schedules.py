"""Schedules against values worked out by hand from the paper's formulas and published settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_thor import (
    Constant,
    ExponentialDamping,
    GrowingInterval,
    Piecewise,
    PolynomialDecay,
    WarmupPolynomialDecay,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PER_EPOCH = 10  # half epochs fall on whole steps

LEARNING_RATES = {
    # eq. 13: α_target (1 − e / e_end)^6; at half the horizon the factor is 1/64
    "THOR 256": (
        PolynomialDecay(0.045, 70, 6, PER_EPOCH),
        {0: 0.045, 7: 0.023914845, 35: 0.000703125, 70: 0.0, 80: 0.0},
    ),
    "THOR_stop 256": (
        PolynomialDecay(0.050, 70, 6, PER_EPOCH),
        {0: 0.050, 7: 0.02657205, 35: 0.00078125, 70: 0.0},
    ),
    "THOR_NT 256": (
        PolynomialDecay(0.045, 72, 6, PER_EPOCH),
        {0: 0.045, 36: 0.000703125, 54: 0.00001098632812, 72: 0.0},
    ),
    # eq. 14: linear for five epochs, then eq. 13 counted from the end of the warm-up
    "THOR 4096": (
        WarmupPolynomialDecay(0.005, 0.45, 5, 55, 6, PER_EPOCH),
        {0: 0.005, 1: 0.094, 2.5: 0.2275, 5: 0.45, 10.5: 0.23914845, 32.5: 0.00703125, 60: 0.0},
    ),
    "THOR 8192": (
        WarmupPolynomialDecay(0.01, 0.8, 5, 48, 6, PER_EPOCH),
        {0: 0.01, 1: 0.168, 2.5: 0.405, 5: 0.8, 29: 0.0125, 53: 0.0, 60: 0.0},
    ),
}

DAMPINGS = {
    # eq. 15: λ0 ρ^(e/10); after five epochs the factor is the square root of ρ
    "THOR 256": (
        ExponentialDamping(0.03, 0.87, PER_EPOCH),
        {0: 0.03, 5: 0.027982137159266443, 10: 0.0261, 20: 0.022707, 30: 0.01975509},
    ),
    "THOR 4096": (
        ExponentialDamping(0.3, 0.2, PER_EPOCH),
        {0: 0.3, 10: 0.06, 20: 0.012, 50: 0.000096},
    ),
    "THOR 8192": (
        ExponentialDamping(0.6, 0.3, PER_EPOCH),
        {0: 0.6, 10: 0.18, 20: 0.054, 40: 0.00486},
    ),
}


@pytest.mark.parametrize(("schedule", "by_hand"), LEARNING_RATES.values(), ids=LEARNING_RATES)
def test_learning_rates_of_the_paper(
    schedule: Callable[[int], float], by_hand: dict[float, float]
) -> None:
    found = {epoch: schedule(round(epoch * PER_EPOCH)) for epoch in by_hand}
    assert found == pytest.approx(by_hand, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("schedule", "by_hand"), DAMPINGS.values(), ids=DAMPINGS)
def test_dampings_of_the_paper(
    schedule: Callable[[int], float], by_hand: dict[float, float]
) -> None:
    found = {epoch: schedule(round(epoch * PER_EPOCH)) for epoch in by_hand}
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_epochs_are_fractional() -> None:
    schedule = PolynomialDecay(1.0, end_epoch=2, power=1, steps_per_epoch=4)
    assert [schedule(step) for step in (0, 1, 2, 4, 8)] == [1.0, 0.875, 0.75, 0.5, 0.0]


def test_the_interval_grows_geometrically_from_refresh_to_refresh() -> None:
    interval = GrowingInterval(start=10, growth=2.0, maximum=100)
    step, lengths = 0, []
    for _ in range(6):
        lengths.append(interval(step))
        step += round(lengths[-1])
    assert lengths == [10, 20, 40, 80, 100, 100]


def test_an_interval_without_growth_stays() -> None:
    assert {GrowingInterval(start=20, growth=1.0)(step) for step in (0, 20, 10_000)} == {20.0}


def test_constant_and_piecewise() -> None:
    assert Constant(0.3)(0) == Constant(0.3)(10**6) == 0.3
    schedule = Piecewise(boundaries=(10, 20), values=(1.0, 0.5, 0.1))
    assert [schedule(step) for step in (0, 9, 10, 19, 20, 99)] == [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]


@given(st.integers(0, 3000), st.integers(1, 50))
def test_learning_rates_fall_and_never_go_below_zero(step: int, per_epoch: int) -> None:
    schedule = PolynomialDecay(0.045, 70, 6, per_epoch)
    assert 0.0 <= schedule(step + 1) <= schedule(step) <= 0.045


@given(st.integers(0, 10**6))
def test_a_schedule_is_a_value(step: int) -> None:
    first, second = (WarmupPolynomialDecay(0.005, 0.45, 5, 55, 6, 100) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first(step) == second(step)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PolynomialDecay(0.1, 0, 6, 10), ["end_epoch", "0", "> 0"]),
        (lambda: PolynomialDecay(0.1, 70, 6, 0), ["steps_per_epoch", "0", ">= 1"]),
        (lambda: WarmupPolynomialDecay(0, 0.1, 0, 70, 6, 10), ["warmup_epochs", "0", "> 0"]),
        (lambda: ExponentialDamping(0.1, -0.5, 10), ["rate", "-0.5", "> 0"]),
        (lambda: GrowingInterval(start=0), ["start", "0", ">= 1"]),
        (lambda: GrowingInterval(growth=0.5), ["growth", "0.5", ">= 1"]),
        (lambda: GrowingInterval(start=20, maximum=10), ["maximum", "10", "20"]),
        (lambda: Piecewise((10,), (1.0,)), ["values", "(1.0,)", "boundaries"]),
        (lambda: Piecewise((20, 10), (1.0, 2.0, 3.0)), ["boundaries", "(20, 10)", "increasing"]),
    ],
)
def test_bad_settings_name_the_argument_the_value_and_what_is_allowed(
    build: Callable[[], object], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^Invalid") as caught:
        build()
    assert [word for word in words if word not in str(caught.value)] == []
