"""The factors of a layer that is called on values with their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from torch_thor import Preconditioner, Statistics, derivatives


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
