"""Promise: captured values are those of the call, whatever happens to the tensors afterwards."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from helpers import EXACT, data, gradient_of, gradients, mean_half_square, weights
from torch_thor import Preconditioner, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable


def preconditioned(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> list[torch.Tensor]:
    preconditioner = Preconditioner(model, **EXACT)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    return gradients(model)


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Conv2d(3, 4, 3, padding=1), lambda: nn.Conv2d(3, 4, 1, bias=False)],
    ids=["3x3", "1x1"],
)
def test_an_inplace_activation_changes_nothing(build: Callable[[], nn.Module]) -> None:
    """Case 1."""
    first, (inputs, targets) = build(), data(8, 3, 4, 4)
    head = nn.Linear(64, 3)
    found = [
        preconditioned(
            nn.Sequential(
                copy.deepcopy(first), nn.ReLU(inplace=inplace), nn.Flatten(), copy.deepcopy(head)
            ),
            inputs,
            targets,
        )
        for inplace in (True, False)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(5, 3), (5,)),
        (lambda: nn.Linear(5, 3, bias=False), (5,)),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.Flatten()), (2, 2, 2)),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Flatten()), (2, 1, 1)),
    ],
    ids=["linear", "linear without bias", "2x2", "1x1"],
)
def test_a_reused_input_buffer_does_not_reach_the_statistics(
    build: Callable[[], nn.Module], shape: tuple[int, ...], rows: int | None
) -> None:
    """Case 2: loaders with static buffers overwrite the input between backward and step."""
    layer, (inputs, targets) = build(), data(8, *shape)
    found = []
    for overwrite in (False, True):
        model, buffer = copy.deepcopy(layer), inputs.clone()
        preconditioner = Preconditioner(
            model, **{**EXACT, "statistics": Statistics(decay=0.0, rows=rows)}
        )
        mean_half_square(model(buffer), targets).backward()
        if overwrite:
            buffer.fill_(7.0)
        preconditioner.step()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_an_output_gradient_changed_in_place_does_not_reach_the_statistics() -> None:
    """Case 2, the other side: autograd may hand the same buffer on and scale it in place."""
    inputs, targets = data()
    found = []
    for disturb in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(5, 3, bias=False)
        preconditioner = Preconditioner(model, **EXACT)
        outputs = model(inputs)
        outputs.retain_grad()
        mean_half_square(outputs, targets).backward()
        if disturb:
            gradient_of(outputs).fill_(7.0)
        preconditioner.step()
        found.append([weights(model), gradient_of(model.weight)])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
