"""Promise: only what reached backward before this step is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from helpers import EXACT, data, gradients, mean_half_square, mlp
from torch_thor import Preconditioner

if TYPE_CHECKING:
    from collections.abc import Callable


def no_grad(model: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        model(inputs)


def inference(model: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        model(inputs)


def kept(model: nn.Module, inputs: Tensor) -> None:
    model.outputs = model(inputs)


def dropped(model: nn.Module, inputs: Tensor) -> None:
    model(inputs)


def input_gradient(model: nn.Module, inputs: Tensor) -> None:
    """A saliency map or a gradient penalty: no weight receives a gradient."""
    asked = inputs.clone().requires_grad_()
    torch.autograd.grad(model(asked).sum(), asked)


@pytest.mark.parametrize("extra", [no_grad, inference, kept, dropped, input_gradient])
@pytest.mark.parametrize("when", ["before forward", "before step", "after step"])
def test_a_forward_that_is_never_followed_by_backward_counts_nothing(
    extra: Callable[[nn.Module, Tensor], None], when: str
) -> None:
    """Case 6."""
    batches = [data(8), data(8)]
    found = []
    for disturbed in (False, True):
        torch.manual_seed(1)
        model = mlp()
        preconditioner = Preconditioner(model, **EXACT)
        for inputs, targets in batches:
            model.zero_grad()
            if disturbed and when == "before forward":
                extra(model, 3 * inputs)
            mean_half_square(model(inputs), targets).backward()
            if disturbed and when == "before step":
                extra(model, 3 * inputs)
            preconditioner.step()
            if disturbed and when == "after step":
                extra(model, 3 * inputs)
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_evaluation_mode_between_steps_changes_nothing() -> None:
    """Case 6: a validation pass in eval mode with gradients enabled."""
    batches = [data(8), data(8)]
    found = []
    for evaluate in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        preconditioner = Preconditioner(model, **EXACT)
        for inputs, targets in batches:
            model.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            preconditioner.step()
            if evaluate:
                model.eval()
                model(inputs)
                model.train()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
