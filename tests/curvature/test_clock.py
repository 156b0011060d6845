"""Trace rule (eq. 8, 9) and the clock that says which layers are due."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import relative_change as exact_change
from torch_thor import Decision, TraceRule
from torch_thor.curvature.clock import RefreshClock
from torch_thor.curvature.decisions import relative_change


@pytest.mark.parametrize(
    ("change", "decision"),
    [
        (math.inf, Decision.UPDATE),
        (0.0101, Decision.UPDATE),
        (0.01, Decision.KEEP),  # ω2 <= Δ <= ω1 keeps: both borders belong to it
        (0.005, Decision.KEEP),
        (0.001, Decision.KEEP),
        (0.00099, Decision.FREEZE),
        (0.0, Decision.FREEZE),
    ],
)
def test_the_rule_at_and_around_its_thresholds(change: float, decision: Decision) -> None:
    assert TraceRule(update_above=0.01, freeze_below=0.001).decide(change) is decision


def test_thor_never_freezes_and_thor_nt_always_updates_on_change() -> None:
    assert TraceRule(0.01, 0.0).decide(0.0) is Decision.KEEP
    assert TraceRule(0.0, 0.0).decide(1e-12) is Decision.UPDATE


@given(st.floats(0, 10), st.floats(0, 1), st.floats(0, 1))
def test_decisions_are_ordered_by_change(change: float, one: float, other: float) -> None:
    rule = TraceRule(max(one, other), min(one, other))
    order = [Decision.FREEZE, Decision.KEEP, Decision.UPDATE]
    assert order.index(rule.decide(change)) <= order.index(rule.decide(change + 0.01))


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_change_is_that_of_the_full_kronecker_matrix(damping: float) -> None:
    pairs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        A, G = torch.randn(4, 9).double(), torch.randn(3, 9).double()
        pairs.append((A @ A.T, G @ G.T))
    before, after = (
        float(A.trace() * G.trace()) + damping * A.shape[0] * G.shape[0] for A, G in pairs
    )
    assert relative_change(after, before) == pytest.approx(
        exact_change(pairs[0], pairs[1], damping)
    )


def test_change_from_nothing_is_infinite() -> None:
    assert relative_change(1.0, 0.0) == math.inf
    assert relative_change(0.0, 0.0) == math.inf


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"update_above": 0.001, "freeze_below": 0.01}, ["update_above=0.001", "0.01"]),
        ({"freeze_below": -1.0}, ["freeze_below=-1.0", ">= 0"]),
        ({"compare": "norm"}, ["compare='norm'", "'distance'"]),
        ({"damped_trace": "both"}, ["damped_trace='both'", "'factors'"]),
    ],
)
def test_bad_thresholds_are_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^Invalid") as caught:
        TraceRule(**arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def due_steps(clock: RefreshClock, interval: float, steps: int, share: float = 0.0) -> list[int]:
    found = []
    for step in range(steps):
        clock.advance(step, interval)
        if clock.due(step, share):
            found.append(step)
    return found


def test_a_fixed_interval_is_due_at_its_multiples() -> None:
    assert due_steps(RefreshClock(), 5, 16) == [0, 5, 10, 15]


def test_a_share_moves_a_layer_inside_every_cycle_but_the_first() -> None:
    assert due_steps(RefreshClock(), 4, 13, share=0.5) == [0, 6, 10]


@given(st.integers(1, 30), st.floats(0, 0.999))
def test_every_layer_is_due_once_a_cycle(interval: int, share: float) -> None:
    found = due_steps(RefreshClock(), interval, 4 * interval, share)
    assert len(found) == 4
    assert [step // interval for step in found] == [0, 1, 2, 3]


def test_an_interval_below_one_step_means_every_step() -> None:
    assert due_steps(RefreshClock(), 0.2, 4) == [0, 1, 2, 3]
