"""Promise: activation checkpointing recomputes the forward, and nothing is counted twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import EXACT, data, gradients, mean_half_square
from torch_thor import Preconditioner, Statistics


class Checkpointed(nn.Module):
    """Segments that are recomputed in backward; ``mode`` None runs them plainly."""

    def __init__(self, segments: list[nn.Module], mode: bool | None) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        for segment in self.segments:
            x = segment(x) if self.mode is None else self.again(segment, x)
        return x

    def again(self, segment: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(segment, x, use_reentrant=self.mode)


def preconditioned(mode: bool | None, *, shared: bool, rows: int | None) -> list[Tensor]:
    torch.manual_seed(3)
    inputs, targets = data(8)
    inputs.requires_grad_()  # reentrant checkpointing wants an input with a gradient
    body = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    other = body if shared else nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    model = Checkpointed([body, other, nn.Linear(5, 3)], mode)
    statistics = Statistics(decay=0.0, rows=rows)
    preconditioner = Preconditioner(model, **{**EXACT, "statistics": statistics})
    for _ in range(2):
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
    return gradients(model)


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("shared", [False, True], ids=["own layers", "one layer twice"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_count_once(reentrant: bool, shared: bool, rows: int | None) -> None:
    """Case 5 (and 4: one module in two segments)."""
    plain = preconditioned(None, shared=shared, rows=rows)
    again = preconditioned(reentrant, shared=shared, rows=rows)
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)
