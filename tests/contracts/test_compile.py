"""Promise: with torch.compile statistics arrive, or a warning says that they don't."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, cast

import pytest
import torch
from torch import nn

from helpers import EXACT, data, gradients, mean_half_square, mlp
from torch_thor import CurvatureWarning, Preconditioner

if TYPE_CHECKING:
    from torch import Tensor


def compiled(model: nn.Module) -> nn.Module:
    # dynamo's tracing decides whether hooks fire; code generation would only add a compiler
    return cast("nn.Module", torch.compile(model, backend="aot_eager"))


def preconditioned(order: str) -> tuple[list[Tensor], list[str]]:
    """Gradients after two steps, and the warnings of torch_thor."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = mlp()
    batches = [data(8), data(8)]
    run: nn.Module = model
    if order == "before":
        run = compiled(model)
    preconditioner = Preconditioner(model, **EXACT)
    if order == "after":
        run = compiled(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for inputs, targets in batches:
            model.zero_grad()
            mean_half_square(run(inputs), targets).backward()
            preconditioner.step()
    said = [str(one.message) for one in caught if issubclass(one.category, CurvatureWarning)]
    return gradients(model), said


@pytest.mark.parametrize("order", ["before", "after"])
def test_statistics_arrive_or_a_warning_names_the_layer(order: str) -> None:
    """Case 7."""
    expected, _ = preconditioned("never")
    found, said = preconditioned(order)
    arrived = all(
        torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        for one, other in zip(found, expected, strict=True)
    )
    assert arrived or all(any(repr(name) in line for line in said) for name in ("0", "2"))


def test_a_model_compiled_before_and_already_run_still_gets_statistics_or_a_warning() -> None:
    """Case 7: the graph was traced when there was no hook yet."""
    torch._dynamo.reset()
    model = mlp()
    run = compiled(model)
    inputs, targets = data(8)
    mean_half_square(run(inputs), targets).backward()
    model.zero_grad()
    raw = mlp()
    raw.load_state_dict(model.state_dict())
    mean_half_square(raw(inputs), targets).backward()
    preconditioner = Preconditioner(model, **EXACT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean_half_square(run(inputs), targets).backward()
        preconditioner.step()
    unchanged = all(map(torch.allclose, gradients(model), gradients(raw)))
    warned = any(issubclass(one.category, CurvatureWarning) for one in caught)
    assert warned or not unchanged
