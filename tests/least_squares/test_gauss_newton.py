"""Steps and their quadratic model against dense algebra in float64, by a Jacobian of autograd's."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from torch_thor import GaussNewton, derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

    Problem = tuple[nn.Module, Callable[[], Any], Callable[[dict[str, Tensor]], Tensor]]


class Stretched(nn.Module):
    """A network with parameters of no layer, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.last = nn.Linear(4, 1)
        self.stretch, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(()))
        self.net[2].bias.requires_grad_(False)

    def forward(self, points: Tensor) -> Tensor:
        return self.last(self.net(points * self.stretch)) + self.shift


def laplacian(net: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """By nested autograd."""
    points = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
    bends = [
        torch.autograd.grad(slope[:, axis].sum(), points, create_graph=True)[0][:, axis]
        for axis in range(points.shape[1])
    ]
    return torch.stack(bends).sum(0).unsqueeze(1)


def equation(net: nn.Module, seed: int) -> Problem:
    """Poisson's equation: two terms with points of their own."""
    stream = torch.Generator().manual_seed(seed)
    inside, border = torch.rand(7, 2, generator=stream), torch.rand(4, 2, generator=stream)
    inside, border = inside.double(), border.double()

    def closure() -> tuple[Tensor, Tensor]:
        return derivatives(net, inside).laplacian - 1, 3 * net(border)

    def residuals(weights: dict[str, Tensor]) -> Tensor:
        def called(points: Tensor) -> Tensor:
            return functional_call(net, weights, (points,))

        first = (laplacian(called, inside) - 1) / 7**0.5
        return torch.cat([first.flatten(), 3 * called(border).flatten() / 4**0.5])

    return net, closure, residuals


def fit(net: nn.Module, inputs: Tensor) -> Problem:
    """A fit of several columns."""
    wanted = torch.randn(net(inputs).shape, generator=torch.Generator().manual_seed(5)).double()

    def residuals(weights: dict[str, Tensor]) -> Tensor:
        errors = functional_call(net, weights, (inputs,)) - wanted
        return errors.flatten() / len(wanted) ** 0.5

    return net, lambda: net(inputs) - wanted, residuals


def problems() -> dict[str, Callable[[], Problem]]:
    def mlp(*widths: int) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        return nn.Sequential(*layers[:-1]).double()

    def conv() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(36, 2),
        ).double()

    stream = torch.Generator().manual_seed(3)
    images = torch.randn(5, 2, 3, 3, generator=stream).double()
    rows = torch.randn(6, 3, generator=stream).double()
    return {
        "equation": lambda: equation(mlp(2, 6, 5, 1), 1),
        "wide equation": lambda: equation(mlp(2, 40, 40, 1), 2),
        "equation with other parameters": lambda: equation(Stretched().double(), 3),
        "fit": lambda: fit(mlp(3, 8, 2), rows),
        "wide fit": lambda: fit(mlp(3, 40, 2), rows),
        "convolutions": lambda: fit(conv(), images),
    }


PROBLEMS = problems()


def dense(problem: Problem) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(J, r) of the scaled residuals, over the flattened parameters that train."""
    net, _, residuals = problem
    weights = {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad}
    names, values = list(weights), tuple(weights.values())

    def of(*given: Tensor) -> Tensor:
        return residuals(dict(zip(names, given, strict=True)))

    parts = torch.autograd.functional.jacobian(of, values)
    jacobian = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)
    return jacobian, of(*values).detach(), weights


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_the_predicted_change_is_that_of_dense_algebra(name: str, curvature: Any) -> None:
    torch.manual_seed(1)
    problem = PROBLEMS[name]()
    net, closure, _ = problem
    optimizer = GaussNewton(net, curvature=curvature, damping=0.1)
    for _ in range(3):
        jacobian, residuals, _ = dense(problem)
        before = flat(net)
        loss = optimizer.step(closure)
        report, moved = optimizer.last_step, flat(net) - before
        assert report is not None
        assert report.length > 0
        push = jacobian @ moved
        predicted = residuals @ push + 0.5 * push @ push
        scale = predicted.abs()
        assert abs(report.predicted - predicted) <= 1e-8 * scale
        torch.testing.assert_close(loss, 0.5 * residuals @ residuals, rtol=1e-12, atol=0)
        after = dense(problem)[1]
        actual = 0.5 * (after @ after) - loss
        assert abs(report.actual - actual) <= 1e-8 * scale


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_exact_step_solves_the_damped_equations(name: str) -> None:
    torch.manual_seed(1)
    problem = PROBLEMS[name]()
    net, closure, _ = problem
    optimizer = GaussNewton(net, damping=0.1)
    for _ in range(2):
        jacobian, residuals, _ = dense(problem)
        before = flat(net)
        optimizer.step(closure)
        report = optimizer.last_step
        assert report is not None
        damped = jacobian.mT @ jacobian + report.damping * torch.eye(len(before)).double()
        wanted = -torch.linalg.solve(damped, jacobian.mT @ residuals)
        error = (flat(net) - before - wanted).norm() / wanted.norm()
        assert error < 1e-8


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_other_lengths_lower_the_damped_model(name: str) -> None:
    """K-FAC's direction and the last step: the gradient of the model is zero along both."""
    torch.manual_seed(1)
    problem = PROBLEMS[name]()
    net, closure, _ = problem
    optimizer = GaussNewton(net, curvature="kronecker", damping=0.1)
    optimizer.step(closure)
    last = torch.cat(
        [optimizer.state[p]["step"].flatten() for p in net.parameters() if p.requires_grad]
    )
    jacobian, residuals, _ = dense(problem)
    before = flat(net)
    optimizer.step(closure)
    report = optimizer.last_step
    assert report is not None
    step = (flat(net) - before) / report.length
    slope = jacobian.mT @ (residuals + jacobian @ step) + report.damping * step
    for direction in (step, last):
        size = (jacobian.mT @ residuals).norm() * direction.norm()
        assert abs(slope @ direction) < 1e-9 * size
