"""Promise: a layer that is not known is never preconditioned wrongly; it trains and is reported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers import data, mean_half_square, weights
from torch_thor import THOR, Treatment


class Conv1D(nn.Module):
    """Hugging Face's Linear with its weight stored (in, out), as GPT-2's ``c_attn`` has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Doubled(nn.Linear):
    """A subclass that uses the weight in its own way."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return nn.functional.linear(input, 2 * self.weight, self.bias)


def test_a_transposed_linear_and_a_subclass_train_by_the_base_rule() -> None:
    """Case 9."""
    model = nn.Sequential(Conv1D(5, 4), nn.Tanh(), Doubled(4, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    report = {entry.name: entry for entry in optimizer.coverage()}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert report[name].treatment is Treatment.BASE
        assert report[name].layer_type in report[name].reason
    assert report["4.weight"].treatment is Treatment.PRECONDITIONED
    before = weights(model)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    for old, new in zip(before, weights(model), strict=True):
        assert not torch.equal(old, new)


def test_parameters_that_no_module_type_owns_train() -> None:
    """Case 9: a bare parameter of the user's own module."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.body = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.body(x)

    model = Scaled()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    assert model.scale.item() != 1.0
    assert "scale" in str(optimizer.coverage())
