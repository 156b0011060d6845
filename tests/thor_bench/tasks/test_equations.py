"""Equations: their solutions solve them, points are drawn by seed, errors are relative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from thor_bench.records.config import DataSource
from thor_bench.tasks import find_task
from thor_bench.tasks.collocation import DrawnPoints
from thor_bench.tasks.equations import HEAT, POISSON_2D, POISSON_5D, Equation
from torch_thor import derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = {"poisson-2d": POISSON_2D, "poisson-5d": POISSON_5D, "heat": HEAT}


class Found(nn.Module):
    """A network that has found the solution."""

    def __init__(self, solution: Callable[[Any], Any]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.solution = solution

    def forward(self, points: Any) -> Any:
        return self.solution(points)


SOLUTIONS: dict[str, Callable[[Any], Any]] = {
    "poisson-2d": lambda x: torch.sin(math.pi * x[:, :1]) * torch.sin(math.pi * x[:, 1:]),
    "poisson-5d": lambda x: torch.cos(math.pi * x).sum(1, keepdim=True),
    "heat": lambda x: torch.exp(-(math.pi**2) / 4 * x[:, :1]) * torch.sin(math.pi * x[:, 1:]),
}


def points_of(equation: Equation, count: int = 64) -> tuple[Tensor, Tensor]:
    inside, known = equation.draw(count, torch.Generator().manual_seed(0))
    return inside.double(), known.double()


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_leaves_no_residual(name: str) -> None:
    equation, found = NAMES[name], Found(SOLUTIONS[name])
    inside, known = equation.residuals(found, points_of(equation))
    assert float(inside.detach().abs().max()) < 1e-10
    # Points of known values were drawn in single precision, which is not quite the border.
    assert float(known.abs().max()) < 1e-10
    assert equation.error(found) < 1e-12
    half = Found(lambda x: 0.5 * SOLUTIONS[name](x))
    assert equation.error(half) == pytest.approx(0.5)
    assert float(equation.residuals(half, points_of(equation))[0].detach().abs().max()) > 0.1 or (
        name == "heat"  # which is linear, so that half of a solution is one
    )


@pytest.mark.parametrize("name", NAMES)
def test_values_are_known_where_the_equation_has_them(name: str) -> None:
    equation = NAMES[name]
    inside, known = points_of(equation, 400)
    assert (len(inside), len(known)) == (400, 100)
    on_side = (known == 0) | (known == 1)
    assert on_side.any(dim=1).all()
    if name == "heat":  # the start and both ends, and nothing of the end of time
        assert not (known[:, 0] == 1).any()
        sides = {(known[:, 0] == 0).sum(), (known[:, 1] == 0).sum(), (known[:, 1] == 1).sum()}
        assert all(10 < int(count) < 60 for count in sides)
    assert len(equation.draw(1, torch.Generator())[1]) == 1


def test_points_are_drawn_by_seed_epoch_and_number_and_ranks_share_them() -> None:
    split = DrawnPoints(POISSON_2D)
    picks = {0: torch.arange(16), 3: torch.arange(16)}

    def read(epoch: int, part: slice = slice(None)) -> list[tuple[Tensor, Tensor]]:
        return list(split.read(picks, part=part, seed=(0, epoch), pin=False))

    first, third = read(0)
    assert [len(one) for one in first] == [16, 4]
    assert not torch.equal(first[0], third[0])
    (again,) = split.read({3: picks[3]}, part=slice(None), seed=(0, 0), pin=False)
    assert torch.equal(again[0], third[0])
    assert not torch.equal(read(1)[0][0], first[0])
    halves = [read(0, part)[0] for part in (slice(0, 8), slice(8, 16))]
    for whole, parts in zip(first, zip(*halves, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_is_judged_by_its_equations_error(name: str) -> None:
    task, equation = find_task(name), NAMES[name]
    model = equation.network().double()
    split = task.data(DataSource()).test
    at, wanted = split.inputs.double(), split.targets.double()
    score = task.judge(model, (at, wanted))
    assert task.metric_of(score.score / score.samples) == pytest.approx(
        equation.error(model), rel=1e-5
    )


def test_derivatives_of_the_residuals_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    net, (inside, _) = POISSON_2D.network().double(), points_of(POISSON_2D, 8)
    inside.requires_grad_()
    (slope,) = torch.autograd.grad(net(inside).sum(), inside, create_graph=True)
    bends = [torch.autograd.grad(slope[:, k].sum(), inside, retain_graph=True)[0] for k in (0, 1)]
    wanted = sum(bend[:, k] for k, bend in enumerate(bends))
    assert torch.allclose(derivatives(net, inside).laplacian.squeeze(1), torch.as_tensor(wanted))
