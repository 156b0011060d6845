"""Runs of Gauss-Newton: they converge, repeat, go on, and say what is wrong."""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from torch_thor import GaussNewton, InvalidOptionError, StateMismatchError, derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

INSIDE = torch.rand(40, 1, generator=torch.Generator().manual_seed(0)).double()
BORDER = torch.tensor([[0.0], [1.0]]).double()
GRID = torch.linspace(0, 1, 50).double().unsqueeze(1)


def net_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)
    ).double()


def poisson(net: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
    """u″ = −π² sin πx, u = 0 at both ends; the solution is sin πx."""
    source = -(math.pi**2) * torch.sin(math.pi * INSIDE)
    return lambda: (derivatives(net, INSIDE).laplacian - source, 10 * net(BORDER))


def error_of(net: nn.Module) -> float:
    wanted = torch.sin(math.pi * GRID)
    with torch.no_grad():
        return float((net(GRID) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("curvature", "steps", "bound"), [("exact", 40, 1e-4), ("kronecker", 40, 0.1)]
)
def test_an_equation_is_solved(curvature: Any, steps: int, bound: float) -> None:
    net = net_of()
    optimizer, closure = GaussNewton(net, curvature=curvature), poisson(net)
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    assert error_of(net) < bound
    assert all(after <= before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_the_first_damping_hardly_matters(factor: float) -> None:
    nets = [net_of(), net_of()]
    for net, damping in zip(nets, (1e-3, 1e-3 * factor), strict=True):
        optimizer = GaussNewton(net, damping=damping)
        for _ in range(45):
            optimizer.step(poisson(net))
    first, second = map(error_of, nets)
    assert max(first, second) < 1e-4


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_runs_repeat_and_go_on_bit_for_bit(curvature: Any) -> None:
    whole, again, resumed = net_of(), net_of(), net_of(1)
    first = GaussNewton(whole, curvature=curvature)
    second = GaussNewton(again, curvature=curvature)
    for _ in range(4):
        first.step(poisson(whole))
        second.step(poisson(again))
    saved = copy.deepcopy((again.state_dict(), second.state_dict()))
    third = GaussNewton(resumed, curvature=curvature)
    third.step(poisson(resumed))  # what it knew is replaced
    resumed.load_state_dict(saved[0])
    third.load_state_dict(saved[1])
    for _ in range(4):
        first.step(poisson(whole))
        third.step(poisson(resumed))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert first.last_step == third.last_step


def test_state_is_plain_tensors_and_numbers(tmp_path: Any) -> None:
    net = net_of()
    optimizer = GaussNewton(net, curvature="kronecker")
    optimizer.step(poisson(net))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_state_of_another_curvature_is_refused() -> None:
    net = net_of()
    exact, kronecker = GaussNewton(net), GaussNewton(net, curvature="kronecker")
    with pytest.raises(StateMismatchError, match="the curvature that was saved"):
        exact.load_state_dict(kronecker.state_dict())
    with pytest.raises(StateMismatchError, match="the curvature that was saved"):
        kronecker.load_state_dict(exact.state_dict())


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_a_step_that_would_raise_the_loss_is_tried_again_or_left_out(curvature: Any) -> None:
    """The closure lies at every second point but the first: no step lowers what it says."""
    net = net_of()
    optimizer = GaussNewton(net, curvature=curvature)
    before = [p.detach().clone() for p in net.parameters()]
    honest, calls = poisson(net), [0]

    def closure() -> tuple[Tensor, ...]:
        calls[0] += 1
        return tuple(term * (1 if calls[0] == 1 else 1000) for term in honest())

    optimizer.step(closure)
    assert all(map(torch.equal, before, net.parameters()))
    assert optimizer.last_step is not None
    assert optimizer.last_step.length == 0
    assert calls[0] > 10
    started = optimizer.damping
    assert started is not None
    optimizer.step(honest)
    assert optimizer.last_step.length > 0


def test_a_trust_region_bounds_how_far_residuals_move() -> None:
    net = net_of()
    optimizer = GaussNewton(net, trust_region=0.01)
    lengths = []
    for _ in range(3):
        before = torch.cat([term.detach().flatten() / len(term) ** 0.5 for term in poisson(net)()])
        optimizer.step(poisson(net))
        after = torch.cat([term.detach().flatten() / len(term) ** 0.5 for term in poisson(net)()])
        lengths.append(float((after - before).norm()))
    assert max(lengths) < 0.015  # to first order
    assert max(lengths) > 0.008


def test_rows_that_are_mixed_are_refused() -> None:
    def normed() -> None:
        net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1))
        GaussNewton(net.double()).step(lambda: net(INSIDE) - 1)

    def nested() -> None:
        net, points = net_of(), INSIDE.clone().requires_grad_()

        def closure() -> Tensor:
            (slope,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
            return slope - 1

        GaussNewton(net).step(closure)

    def together() -> None:
        net = net_of()
        points = torch.cat([INSIDE, BORDER])
        GaussNewton(net).step(lambda: net(points).split([40, 2]))

    for mixed, message in ((normed, "batch norm"), (nested, "torch_thor.derivatives")):
        with pytest.raises(ValueError, match=message):
            mixed()
    with pytest.raises(ValueError, match="40 rows, but comes from a call of layer '0' with 42"):
        together()


def test_what_exact_refuses_kronecker_trains() -> None:
    net = net_of()
    points = torch.cat([INSIDE, BORDER])
    optimizer = GaussNewton(net, curvature="kronecker")
    losses = [float(optimizer.step(lambda: net(points).split([40, 2]))) for _ in range(5)]
    assert losses[-1] < 0.1 * losses[0]


def test_what_the_closure_returns_is_checked() -> None:
    net = net_of()
    optimizer = GaussNewton(net)
    for wrong in (None, (), torch.tensor(1.0), [1.0], 3):
        with pytest.raises(InvalidOptionError, match="a tensor of residuals"):
            optimizer.step(lambda wrong=wrong: wrong)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"curvature": "kfac"}, "'exact', 'kronecker'"),
        ({"trust_region": -1.0}, "trust_region=-1.0"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        GaussNewton(net_of(), **options)


def test_a_model_of_other_parameters_is_no_model_for_exact() -> None:
    net = nn.Sequential(nn.Linear(2, 300), nn.LayerNorm(300), nn.Linear(300, 1))
    with pytest.raises(
        InvalidOptionError, match=r"'kronecker' for this model: 600 entries \(1.weight"
    ):
        GaussNewton(net)


def test_hooks_go_and_nothing_is_held_between_steps() -> None:
    net = net_of()
    optimizer = GaussNewton(net)
    optimizer.step(poisson(net))
    optimizer.remove()
    assert not any(module._forward_hooks for module in net.modules())


def test_a_frozen_layer_stays_and_a_thawed_one_joins() -> None:
    net = net_of()
    first: Any = net[2]
    first.requires_grad_(False)
    optimizer = GaussNewton(net)
    before = first.weight.detach().clone()
    optimizer.step(poisson(net))
    assert torch.equal(before, first.weight)
    first.requires_grad_(True)
    optimizer.step(poisson(net))
    assert not torch.equal(before, first.weight)


def test_other_parameters_than_the_optimizers_stay() -> None:
    net = net_of()
    optimizer = GaussNewton(net, net[4].parameters())
    before = [p.detach().clone() for p in net[:4].parameters()]
    optimizer.step(poisson(net))
    assert all(map(torch.equal, before, net[:4].parameters()))


def test_an_error_in_the_closure_leaves_the_weights() -> None:
    net = net_of()
    optimizer, calls = GaussNewton(net), [0]
    before = [p.detach().clone() for p in net.parameters()]

    def closure() -> tuple[Tensor, ...]:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyError("data")
        return poisson(net)()

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(map(torch.equal, before, net.parameters()))
    optimizer.step(closure)
    assert not torch.equal(before[0], next(net.parameters()))


def test_a_damping_that_is_not_adaptive_stays() -> None:
    net = net_of()
    optimizer = GaussNewton(net, adaptive=False)
    optimizer.step(poisson(net))
    first = optimizer.damping
    for _ in range(5):
        optimizer.step(poisson(net))
    assert optimizer.damping == first


def test_without_a_line_search_every_finite_step_is_taken() -> None:
    net = net_of()
    optimizer = GaussNewton(net, damping=1e-12, line_search=False)
    reports = []
    for _ in range(6):
        optimizer.step(poisson(net))
        reports.append(optimizer.last_step)
    assert all(report is not None and report.attempts == 1 for report in reports)
    assert any(report is not None and report.actual > 0 for report in reports)


def test_a_copy_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match="Build one on the copied model"):
        copy.deepcopy(GaussNewton(net_of()))
