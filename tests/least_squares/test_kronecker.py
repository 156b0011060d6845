"""The factors of a layer that is called on values with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from torch_thor import GaussNewton, Preconditioner, Statistics, derivatives


def test_each_derivative_is_a_position_that_the_bias_does_not_reach() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    points = torch.rand(6, 2).double()
    engine = Preconditioner(
        net,
        split=None,
        factor_interval=1,
        statistics=Statistics(0.0, rows=None, loss_reduction="sum"),
    )
    derivatives(net, points).laplacian.sum().backward()
    engine.step()

    weight, bias = (p.detach() for p in net[0].parameters())

    def hidden(point: Tensor) -> Tensor:
        return torch.tanh(weight @ point + bias)

    value, slopes = vmap(hidden)(points), vmap(jacrev(hidden))(points)
    bends = vmap(jacrev(jacrev(hidden)))(points).diagonal(dim1=2, dim2=3).sum(2)
    streams = torch.stack([value, *slopes.unbind(2), bends], dim=1).detach()
    ones = torch.tensor([1.0, 0, 0, 0]).double().expand(6, 4).unsqueeze(2)
    rows = torch.cat([streams, ones], dim=2).flatten(0, 1)
    (stack,) = (s for s in engine.engine.stacks if s.layers[0].name == "2")
    torch.testing.assert_close(stack.a.blocks.squeeze(), rows.mT @ rows / len(rows))
    # Only the stream of second derivatives has a gradient: 1 for each of the samples.
    torch.testing.assert_close(stack.g.blocks.squeeze(), torch.ones(()).double())


def test_padding_of_tokens_is_no_matter_of_derivatives() -> None:
    """A stream without a gradient still was a position."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    options = {"split": None, "factor_interval": 1}
    engine = Preconditioner(net, statistics=Statistics(0.0, rows=None), **options)  # type: ignore[arg-type]
    derivatives(net, torch.rand(6, 2)).value.sum().backward()
    engine.step()
    (stack,) = (s for s in engine.engine.stacks if s.layers[0].name == "0")
    # The bias' column: one stream of four is the value.
    torch.testing.assert_close(stack.a.blocks.squeeze()[2, 2], torch.tensor(0.25))


def test_the_bias_reaches_each_value_of_a_point() -> None:
    """Of a value ``[N, 2, 1]`` both positions are values."""
    net = nn.Linear(1, 1).double()
    options = {"split": None, "factor_interval": 1}
    engine = Preconditioner(net, statistics=Statistics(0.0, rows=None), **options)  # type: ignore[arg-type]
    derivatives(lambda x: net(x.unsqueeze(-1)), torch.rand(6, 2).double()).value.sum().backward()
    engine.step()
    (stack,) = engine.engine.stacks
    # Two positions in four streams of two: one of four is a value's.
    torch.testing.assert_close(stack.a.blocks.squeeze()[1, 1], torch.tensor(0.25).double())


def test_an_attention_has_second_derivatives() -> None:
    """Fused kernels have none, so they are left out inside a step."""
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = (
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.Linear(8, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
            return out

    net, inputs = Mixed(), torch.randn(9, 5, 8)
    optimizer = GaussNewton(net, curvature="kronecker")
    losses = [float(optimizer.step(lambda: net(inputs) - 1)) for _ in range(5)]
    assert losses[-1] < 0.1 * losses[0]
