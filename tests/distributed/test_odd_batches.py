"""Ranks without samples, without gradients, and with fewer batches than the others (case 39)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from data_parallel import CASES, batches_of
from helpers import convnet, gradient_of, mean_half_square, mlp
from ranks import on_ranks
from torch_thor import THOR, Refresh, Statistics
from uneven_ranks import TwoHeads, Uneven, odd_batches

pytestmark = pytest.mark.cpu  # ranks talk over gloo

RANKS = 2
KINDS = (
    "an empty batch",
    "unused layers",
    "a layer that nobody uses",
    "early end",
    "early end without wrapper",
    "not finite",
    "bad statistics",
    "channels last",
    "batches of unlike sizes",
    "overshooting",
)


@cache
def ended() -> list[dict[str, Uneven]]:
    return on_ranks(RANKS, odd_batches)


def alone(model: nn.Module) -> THOR:
    return THOR(
        model,
        norm_control="graft",
        lr=0.05,
        interval=1,
        statistics=Statistics(rows=None),
        refresh=Refresh(stagger=False),
    )


def assert_close(kind: str, model: nn.Module) -> None:
    for found, expected in zip(ended()[0][kind].weights, model.parameters(), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hangs_and_all_ranks_end_alike(kind: str) -> None:
    """Case 39."""
    first, *others = (kinds[kind] for kinds in ended())
    assert all(weight.isfinite().all() for weight in first.weights)
    for other in others:
        assert first.steps == other.steps
        assert all(map(torch.equal, first.weights, other.weights))
        assert all(map(torch.equal, first.factors, other.factors))


@pytest.mark.parametrize("kind", KINDS)
def test_momentum_is_the_same_on_all_ranks(kind: str) -> None:
    first, *others = (kinds[kind].state["state"] for kinds in ended())
    for other in others:
        assert first.keys() == other.keys()
        for key, own in first.items():
            assert own.keys() == other[key].keys()
            for name, value in own.items():
                torch.testing.assert_close(value, other[key][name], rtol=0, atol=0)


def test_rates_fall_by_the_same_share_on_all_ranks() -> None:
    shares = [kinds["overshooting"].state["curvature"]["overshoot"]["share"] for kinds in ended()]
    assert shares[0] == shares[1] < 0.9


def train(model: nn.Module, weights: list[float]) -> nn.Module:
    """One process with the samples of all ranks; each step's gradient times its weight."""
    optimizer = alone(model)
    for (x, y), weight in zip(batches_of(CASES["thor"], len(weights)), weights, strict=True):
        optimizer.zero_grad()
        mean_half_square(model(x), y).backward()
        for parameter in model.parameters():
            gradient_of(parameter).mul_(weight)
        optimizer.step()
    return model


def fresh() -> nn.Module:
    torch.manual_seed(3)
    return mlp().double()


def test_an_empty_batch_has_no_weight_in_the_curvature() -> None:
    """Case 39: the other rank's statistics count in full, DDP's mean gradient by half."""
    assert_close("an empty batch", train(fresh(), [0.5, 1, 1, 0.5, 1, 1, 0.5]))


@pytest.mark.parametrize("kind", ["early end", "early end without wrapper"])
def test_ranks_that_are_done_leave_the_curvature_to_the_others(kind: str) -> None:
    """5 steps of both ranks, 2 of one of them, and 2 of both."""
    optimizer = alone(model := fresh())
    both, rest = batches_of(CASES["thor"], 7), batches_of(CASES["thor"], 2)
    for number, (x, y) in enumerate(both + rest):
        optimizer.zero_grad()
        mean_half_square(model(x), y).backward()
        for parameter in model.parameters():
            gradient_of(parameter).mul_(0.5 if number in (5, 6) else 1.0)
        optimizer.step()
    assert_close(kind, model)


def test_a_layer_is_estimated_from_the_ranks_that_used_it() -> None:
    """Case 39: relative damping and grafting make each layer's scale of statistics free."""
    torch.manual_seed(3)
    model = TwoHeads().double()
    optimizer = alone(model)
    for x, y in batches_of(CASES["thor"], 6):
        optimizer.zero_grad()
        for rank in range(RANKS):
            (mean_half_square(model(x, rank), y) / RANKS).backward()
        optimizer.step()
    assert_close("unused layers", model)


def test_an_infinite_gradient_of_one_rank_skips_the_step_on_all() -> None:
    assert [kinds["not finite"].steps for kinds in ended()] == [3, 3]


def test_infinite_statistics_of_one_rank_reach_the_factors_of_none() -> None:
    """Case 24: the averages hold steps 0 and 2 only."""
    torch.manual_seed(3)
    model = nn.Linear(5, 3).double()
    optimizer = alone(model)
    batches = batches_of(CASES["thor"], 3)
    for x, y in (batches[0], batches[2]):
        optimizer.zero_grad()
        mean_half_square(model(x), y).backward()
        optimizer.step()
    (stack,) = optimizer.engine.stacks
    # The input factor does not depend on the weights, which the odd step has moved.
    torch.testing.assert_close(ended()[0]["bad statistics"].factors[0], stack.a.blocks)


def test_gradients_in_any_memory_format_are_averaged() -> None:
    """Case 41."""
    torch.manual_seed(3)
    model = convnet().double()
    optimizer = alone(model)
    for x, y in batches_of(CASES["trace rule"], 4):
        optimizer.zero_grad()
        mean_half_square(model(x), y).backward()
        optimizer.step()
    assert_close("channels last", model)
