"""Derivatives that one forward carries along are those of nested autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import InvalidOptionError, derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = (1.0, 2.0, 0.0)  # of the second derivatives


class Field(nn.Module):
    """All that a field may be made of: shortcuts, features, products, quotients, columns."""

    frequencies: Tensor

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 8)
        self.last = nn.Linear(11, 2, bias=False)
        self.activation = activation
        self.register_buffer("frequencies", torch.randn(3, 3))

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.activation(self.first(points))
        hidden = hidden + 0.5 * self.activation(self.second(hidden))
        waves = torch.cos(points @ self.frequencies) - points.sin()
        outputs = self.last(torch.cat([hidden, waves], dim=-1))
        inside = points[:, :1] * (1 - points[..., :1])
        shifted = 3.0 - inside * outputs + points[:, 1:2] ** 3
        return shifted / (2 + outputs * outputs) - torch.ones(2)


def by_autograd(field: nn.Module, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    points = points.clone().requires_grad_()
    value = field(points)
    slopes, seconds = [], []
    for output in value.unbind(1):
        (slope,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        bends = [
            torch.autograd.grad(slope[:, axis].sum(), points, retain_graph=True)[0][:, axis]
            for axis in range(3)
        ]
        slopes.append(slope)
        seconds.append(sum(w * bend for w, bend in zip(WEIGHTS, bends, strict=True)))
    return value, torch.stack(slopes, dim=2), torch.stack(seconds, dim=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "activation",
    [torch.tanh, torch.sin, torch.sigmoid, nn.SiLU(), nn.GELU(), nn.Softplus(), torch.exp],
)
def test_derivatives_are_those_of_autograd(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    field, points = Field(activation).double(), torch.rand(5, 3).double()
    found = derivatives(field, points, WEIGHTS)
    value, gradient, laplacian = by_autograd(field, points)
    torch.testing.assert_close(found.value, value)
    torch.testing.assert_close(found.gradient, gradient)
    torch.testing.assert_close(found.laplacian, laplacian)


def test_weights_get_the_gradient_of_a_laplacian() -> None:
    torch.manual_seed(0)
    field, points = Field(torch.tanh).double(), torch.rand(5, 3).double()
    weights = list(field.parameters())
    of_ours = torch.autograd.grad(derivatives(field, points).laplacian.square().sum(), weights)
    leaf = points.clone().requires_grad_()
    (slope, other) = (
        torch.autograd.grad(field(leaf)[:, column].sum(), leaf, create_graph=True)[0]
        for column in range(2)
    )
    total = torch.zeros((), dtype=torch.float64)
    for one in (slope, other):
        bends = [
            torch.autograd.grad(one[:, axis].sum(), leaf, create_graph=True)[0][:, axis]
            for axis in range(3)
        ]
        total = total + torch.stack(bends).sum(0).square().sum()
    torch.testing.assert_close(of_ours, torch.autograd.grad(total, weights))


def test_what_has_no_rule_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"can't pass torch's layer_norm.*create_graph"):
        derivatives(nn.LayerNorm(2), torch.rand(4, 2))
    with pytest.raises(NotImplementedError, match="columns only"):
        derivatives(lambda points: points[0], torch.rand(4, 2))
    with pytest.raises(NotImplementedError, match="last dimension only"):
        derivatives(lambda points: torch.cat([points, points]), torch.rand(4, 2))


def test_what_is_no_field_says_so() -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(InvalidOptionError, match=r"Invalid points=\(4,\)"):
        derivatives(net, torch.rand(4))
    with pytest.raises(InvalidOptionError, match="for each of the 2 axes"):
        derivatives(net, torch.rand(4, 2), second=(1.0,))
    with pytest.raises(TypeError, match="does not depend on the points"):
        derivatives(lambda _: torch.ones(4), torch.rand(4, 2))


def test_functions_without_a_second_derivative_bend_nowhere() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    found = derivatives(net, torch.rand(6, 2).double())
    assert not found.laplacian.any()
    assert found.gradient.any()


def test_no_graph_is_needed() -> None:
    net, points = nn.Sequential(nn.Linear(2, 4), nn.SiLU()), torch.rand(6, 2)
    with torch.no_grad():
        found = derivatives(net, points)
    torch.testing.assert_close(found.laplacian, derivatives(net, points).laplacian)


def test_functional_calls_of_activations_pass() -> None:
    found = derivatives(lambda x: functional.leaky_relu(x.tanh(), 0.1), torch.rand(6, 2))
    assert found.value.shape == (6, 2)
    assert found.gradient.shape == (6, 2, 2)
