"""A refresh of many layers at once: what fails, what is joined, what the host learns later."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import AT_EVERY_STEP, data, mean_half_square
from torch_thor import THOR, CurvatureWarning, Damping, Preconditioner, Refresh, Statistics, linalg
from torch_thor.curvature import block_batch
from torch_thor.curvature.verdict import Verdict
from torch_thor.options.trace_rule import Decision

Root = Callable[..., tuple[Tensor, Tensor]]


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def refreshing(model: nn.Module, **options: Any) -> Preconditioner:
    defaults: dict[str, Any] = {
        "factor_interval": 1,
        "power": 0.5,
        "statistics": Statistics(decay=0.5, rows=None),
        "refresh": Refresh(stagger=False),
    }
    return Preconditioner(model, **defaults | options)


def backward(model: nn.Module, turn: int = 0) -> None:
    torch.manual_seed(turn)
    inputs, targets = data()
    mean_half_square(model(inputs), targets).backward()


def inverses(preconditioner: Preconditioner) -> dict[str, tuple[Tensor, Tensor]]:
    stacks = preconditioner.engine.stacks
    return {
        layer.name: (stack.inverses.a[slot].clone(), stack.inverses.g[slot].clone())
        for stack in stacks
        for slot, layer in enumerate(stack.layers)
    }


def failing(original: Root, sizes: set[int], types: set[torch.dtype]) -> Root:
    """Roots that fail for blocks of some sizes and types."""

    def roots(matrices: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        found, good = original(matrices, *arguments)
        fails = matrices.shape[-1] in sizes and matrices.dtype in types
        return (
            (torch.full_like(found, torch.nan), torch.zeros_like(good)) if fails else (found, good)
        )

    return roots


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of different sizes stay apart."""
    monkeypatch.setitem(block_batch._CALLS, "cpu", -1.0)


@pytest.mark.usefixtures("alone")
def test_what_fails_in_float32_is_tried_again_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 22."""
    model = three_layers()
    twin = copy.deepcopy(model)
    expected, found = refreshing(model), refreshing(twin)
    backward(model)
    expected.step()
    monkeypatch.setattr(linalg, "inverse_root", failing(linalg.inverse_root, {6}, {torch.float32}))
    backward(twin)
    found.step()
    for name, pair in inverses(expected).items():
        for one, other in zip(pair, inverses(found)[name], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
            assert one.any()


@pytest.mark.usefixtures("alone")
def test_a_layer_that_fails_keeps_all_of_its_last_inverse_and_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 22: half a layer in a new basis and half in the old one would be neither."""
    model = three_layers()
    preconditioner = refreshing(model)
    backward(model)
    preconditioner.step()
    before = inverses(preconditioner)
    both = {torch.float32, torch.float64}
    monkeypatch.setattr(linalg, "inverse_root", failing(linalg.inverse_root, {6}, both))
    backward(model, 1)
    with pytest.warns(CurvatureWarning, match=r"layer '0'.*|layer '2'.*"):
        preconditioner.step()
    after = inverses(preconditioner)
    # A of layer 0 has 6 rows and so has its G; those of layer 2 have 7 and 4.
    assert all(torch.equal(x, y) for x, y in zip(before["0"], after["0"], strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(before["4"], after["4"], strict=True))


def test_blocks_of_nearby_sizes_are_factorized_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    original = linalg.inverse_root

    def counted(matrices: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(tuple(matrices.shape))
        return original(matrices, *arguments)

    monkeypatch.setattr(linalg, "inverse_root", counted)
    model = three_layers()
    preconditioner = refreshing(model)
    backward(model)
    preconditioner.step()
    assert calls == [(6, 7, 7)]


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_padding_changes_no_inverse(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 3)).double()
    joined = refreshing(model, power=power, split=4)
    inputs = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    model(inputs).square().mean().backward()
    twin = copy.deepcopy(model)
    joined.step()
    monkeypatch.setitem(block_batch._CALLS, "cpu", -1.0)
    apart = refreshing(twin, power=power, split=4)
    twin.zero_grad()
    twin(inputs).square().mean().backward()
    apart.step()
    for name, pair in inverses(joined).items():
        for one, other in zip(pair, inverses(apart)[name], strict=True):
            torch.testing.assert_close(one[..., :-1, :-1], other[..., :-1, :-1])


def trained(steps: int = 6) -> tuple[list[Tensor], list[Any]]:
    """Weights, and decisions asked for late, of steps among which one has broken statistics."""
    torch.manual_seed(0)
    model = three_layers()
    optimizer = THOR(model, lr=0.05, **AT_EVERY_STEP)
    decisions = []
    for turn in range(steps):
        optimizer.zero_grad()
        backward(model, turn)
        if turn == 3:  # as an overflow in a layer's rows would
            for call in optimizer.engine.layers[1].ledger.calls:
                call.inputs.mul_(torch.inf)
        optimizer.step()
        if turn % 2:
            decisions.append(optimizer.last_decisions)
    return [p.detach().clone() for p in model.parameters()], decisions


def test_a_verdict_that_is_read_later_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU no step waits for what its refresh has come to."""
    at_once, decided = trained()
    monkeypatch.setattr(
        Verdict,
        "can_wait",
        property(lambda self: all(c.record.ready for r in self._renewals for c in r.due)),
    )
    later, decided_later = trained()
    assert all(torch.equal(x, y) for x, y in zip(at_once, later, strict=True))
    assert decided == decided_later
    kept = [one.layer for one in decided[1] if one.decision is Decision.KEEP]
    assert kept == ["2"]


def test_a_gradient_that_was_zeroed_through_data_counts_for_nothing() -> None:
    model = three_layers()
    preconditioner = refreshing(model)
    backward(model)
    preconditioner.step()
    before = preconditioner.factor_norms()
    backward(model, 1)
    for parameter in model[0].parameters():
        assert parameter.grad is not None
        parameter.grad.data.zero_()
    preconditioner.step()
    after = preconditioner.factor_norms()
    assert before["0"] == after["0"]
    assert before["2"] != after["2"]


def test_rows_of_unlike_numbers_do_not_share_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros beside the fewer rows would take more than all rows do."""
    monkeypatch.setitem(block_batch._TABLE_BYTES, "cpu", 1 << 16)
    made: list[int] = []
    original = block_batch._fill

    def noting(members: list[block_batch.Member], table: Tensor) -> None:
        made.append(table.nbytes)
        original(members, table)

    monkeypatch.setattr(block_batch, "_fill", noting)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 8), nn.Linear(8, 3))
    preconditioner = refreshing(model, split=12)
    model(torch.randn(16, 1, 10, 10)).square().mean().backward()
    preconditioner.step()
    assert made
    assert max(made) <= 1 << 16


def test_a_model_that_becomes_float64_goes_on() -> None:
    model = three_layers()
    optimizer = THOR(model, lr=0.01, norm_control="graft", **AT_EVERY_STEP)
    backward(model)
    optimizer.step()
    model.double()
    optimizer.zero_grad()
    inputs, targets = data()
    mean_half_square(model(inputs.double()), targets.double()).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.cpu  # another device would have to be waited for
@pytest.mark.parametrize("mode", ["relative", "sqrt", "pi"])
def test_the_bound_on_condition_numbers_is_of_the_blocks_that_are_there(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is entered into the ladder of products, and saves some."""
    seen: list[tuple[Tensor, float]] = []
    plain = linalg.inverse_root

    def noting(matrices: Tensor, power: float, condition: float) -> tuple[Tensor, Tensor]:
        seen.append((matrices.double(), condition))
        return plain(matrices, power, condition)

    monkeypatch.setattr(linalg, "inverse_root", noting)
    model = three_layers()
    damping, refresh = Damping(0.01, mode), Refresh(stagger=False)
    thor = refreshing(model, damping=damping, statistics=Statistics(rows=None), refresh=refresh)
    backward(model)
    thor.step()
    values = [torch.linalg.eigvalsh(own) for own, _ in seen]
    true = max(float((own[:, -1] / own[:, 0]).max()) for own in values)
    (bound,) = {condition for _, condition in seen}
    assert 0.99 * true <= bound <= 10 * true
    known = max(stack.condition(0.01) for stack in thor.engine.stacks)
    assert bound <= known if mode == "relative" else bound < known == math.inf
