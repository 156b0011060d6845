"""What is no sum of squares of a network's own rows is refused in words, and nothing moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from torch_thor import GaussNewton, InvalidOptionError, NonFiniteGradientError, derivatives

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = torch.rand(12, 2, generator=torch.Generator().manual_seed(0)).double()


def net_of(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), *between, nn.Tanh(), nn.Linear(8, 1)).double()


def rolled(net: nn.Module) -> tuple[Tensor, Tensor]:
    """The second term's rows are another's, at a hundred-millionth of the loss."""
    return 1e4 * net(POINTS), net(POINTS[:6]).roll(1, 0)


def regularized(net: nn.Module) -> tuple[Tensor, Tensor]:
    weight = next(net.parameters())
    return net(POINTS), 1e-3 * weight


@pytest.mark.parametrize("closure", [rolled, regularized])
def test_no_small_term_hides_behind_a_large_one(closure: Callable[[nn.Module], Any]) -> None:
    net = net_of()
    with pytest.raises(ValueError, match="rows of the residuals"):
        GaussNewton(net).step(lambda: closure(net))


def test_rows_are_compared_again_after_a_head_of_zeros() -> None:
    net = net_of(nn.BatchNorm1d(8))
    nn.init.zeros_(net[3].weight)  # type: ignore[arg-type]
    optimizer = GaussNewton(net)
    wanted = torch.sin(3 * POINTS[:, :1])

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.step(lambda: net(POINTS) - wanted)

    run(1)
    with pytest.raises(ValueError, match="no batch norm"):
        run(7)


def test_weights_without_their_layer_are_refused() -> None:
    net = net_of()
    first: Any = net[0]
    with pytest.raises(ValueError, match="layers must be called"):
        GaussNewton(net).step(lambda: POINTS @ first.weight.mT)


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_a_closure_that_does_not_repeat_is_refused(curvature: Any) -> None:
    net = net_of(nn.Dropout(0.5))
    optimizer = GaussNewton(net, curvature=curvature)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="Draw points between steps"):
        optimizer.step(lambda: net(POINTS) - 1)
    assert all(map(torch.equal, before, net.parameters()))
    net.eval()
    optimizer.step(lambda: net(POINTS) - 1)
    assert not torch.equal(before[0], next(net.parameters()))


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_residuals_that_are_not_finite_raise_and_change_nothing(curvature: Any) -> None:
    net = net_of()
    optimizer = GaussNewton(net, curvature=curvature)
    factors = torch.ones(12, 1).double()
    factors[3] = float("nan")
    with pytest.raises(NonFiniteGradientError, match="term 1 of the residuals has 1 of 12 values"):
        optimizer.step(lambda: (net(POINTS), factors * net(POINTS)))
    assert optimizer.damping is None
    optimizer.step(lambda: net(POINTS) - 1)
    damping = optimizer.damping
    with pytest.raises(NonFiniteGradientError, match="not finite"):
        optimizer.step(lambda: net(POINTS) / 0)
    assert optimizer.damping == damping


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_gradients_that_are_not_finite_raise(curvature: Any) -> None:
    net = net_of()
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[2].bias)  # type: ignore[arg-type]
    optimizer = GaussNewton(net, curvature=curvature)
    with pytest.raises(NonFiniteGradientError, match="gradients of the residuals are not finite"):
        optimizer.step(lambda: net(POINTS).abs().sqrt())
    assert optimizer.damping is None
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_residuals_without_a_gradient_raise(curvature: Any) -> None:
    net = net_of()
    optimizer = GaussNewton(net, curvature=curvature)
    with pytest.raises(ValueError, match="No residual depends on a parameter"):
        optimizer.step(lambda: net(POINTS).detach())
    with pytest.raises(InvalidOptionError, match="view_as_real"):
        optimizer.step(lambda: net(POINTS) * 1j)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter trains"):
        optimizer.step(lambda: net(POINTS))


def test_a_term_that_depends_on_nothing_is_a_constant_of_the_loss() -> None:
    net, wanted = net_of(), torch.ones(4, 1).double()
    optimizer = GaussNewton(net)
    loss = optimizer.step(lambda: (net(POINTS) - 1, wanted))
    with torch.no_grad():
        alone = 0.5 * (net_of()(POINTS) - 1).square().mean()
        torch.testing.assert_close(loss, alone + 0.5)
        assert (net(POINTS) - 1).square().mean() < 0.1 * alone


def test_parameters_of_no_layer_train_alone() -> None:
    class Rate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, points: Tensor) -> Tensor:
            return torch.exp(self.rate * points[:, :1])

    model = Rate()
    optimizer = GaussNewton(model)
    for _ in range(8):
        optimizer.step(lambda: model(POINTS) - torch.exp(0.7 * POINTS[:, :1]))
    assert float(model.rate.detach()) == pytest.approx(0.7)


def test_half_precision_is_left_to_kronecker() -> None:
    net = net_of().bfloat16()
    with pytest.raises(InvalidOptionError, match="or use curvature='kronecker'"):
        GaussNewton(net).step(lambda: net(POINTS.bfloat16()))


def in_half(net: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs: Tensor = net(POINTS.float())
    return outputs.float() - 1


def derived_in_half(net: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return derivatives(net, POINTS.float()).laplacian - 1


@pytest.mark.parametrize("closure", [in_half, derived_in_half])
def test_autocast_in_the_closure_is_left_to_kronecker(
    closure: Callable[[nn.Module], Tensor],
) -> None:
    """The residuals are float32, and a layer behind them is not."""
    net = net_of().float()
    told = r"Invalid type of layer '0'=torch.bfloat16.*float32 or float64: leave autocast out"
    with pytest.raises(InvalidOptionError, match=told):
        GaussNewton(net).step(lambda: closure(net))
    optimizer = GaussNewton(net, curvature="kronecker")
    first, *_, last = [float(optimizer.step(lambda: closure(net))) for _ in range(6)]
    assert last < 0.1 * first


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_autocast_around_a_step_is_refused(curvature: Any) -> None:
    """Products of the step in half precision find no step, and say nothing of it."""
    net = net_of().float()
    optimizer = GaussNewton(net, curvature=curvature)
    told = r"Invalid autocast=torch.bfloat16. Must be off around step\(\)"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(InvalidOptionError, match=told),
    ):
        optimizer.step(lambda: net(POINTS.float()) - 1)
    optimizer.step(lambda: net(POINTS.float()) - 1)


def test_a_step_that_is_refused_at_every_damping_blames_none() -> None:
    """A solved batch must not leave a λ with which the next one can't move."""
    net = net_of()
    optimizer = GaussNewton(net)
    optimizer.step(lambda: net(POINTS) - 1)
    damping, solved = optimizer.damping, net(POINTS).detach()
    for _ in range(3):
        optimizer.step(lambda: net(POINTS) - solved)
    assert optimizer.last_step is not None
    assert optimizer.last_step.length == 0
    assert optimizer.damping == damping


@pytest.mark.parametrize("curvature", ["exact", "kronecker"])
def test_values_of_more_dimensions_carry_derivatives(curvature: Any) -> None:
    """The bias reaches each of a point's values, and no derivative of them."""

    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

        def forward(self, points: Tensor) -> Tensor:
            return self.net(points.unsqueeze(-1)).sum(1)

    torch.manual_seed(0)
    net = Each()
    optimizer = GaussNewton(net, curvature=curvature)
    first = float(optimizer.step(lambda: derivatives(net, POINTS).laplacian - 1))
    for _ in range(3):
        last = float(optimizer.step(lambda: derivatives(net, POINTS).laplacian - 1))
    assert last < 0.5 * first


def test_groups_and_parameters_of_another_model_are_refused() -> None:
    net = net_of()
    with pytest.raises(InvalidOptionError, match="parameters, not groups"):
        GaussNewton(net, [{"params": list(net.parameters())}])  # type: ignore[list-item]
    with pytest.raises(InvalidOptionError, match="the model's own"):
        GaussNewton(net, net_of().parameters())
