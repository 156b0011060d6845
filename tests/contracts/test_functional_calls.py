"""Promise: ``torch.func`` and ``functional_call`` give the statistics of the module's own call."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from helpers import EXACT, gradients, half_square
from models import Transformer, autoencoder, batch_for
from torch_thor import CurvatureWarning, Preconditioner


@pytest.mark.parametrize("build", [Transformer, autoencoder])
@pytest.mark.parametrize("own", ["the parameters themselves", "copies of them"])
def test_functional_call_is_a_call(build: type, own: str) -> None:
    """Case 7: also where other tensors stand in the parameters' places."""
    torch.manual_seed(0)
    model = build()
    inputs, targets = batch_for(model)
    found = []
    for functional in (False, True):
        model.zero_grad()
        preconditioner = Preconditioner(model, **EXACT)
        parameters = dict(model.named_parameters())
        if functional and own == "copies of them":
            parameters = {
                name: value.detach().clone().requires_grad_() for name, value in parameters.items()
            }
        outputs = functional_call(model, parameters, (inputs,)) if functional else model(inputs)
        taken = torch.autograd.grad(half_square(outputs, targets), list(parameters.values()))
        for parameter, gradient in zip(model.parameters(), taken, strict=True):
            parameter.grad = gradient
        preconditioner.step()
        preconditioner.remove()
        found.append(gradients(model))
    torch.testing.assert_close(*found)


def test_torch_func_grad_through_the_model_leaves_statistics_alone() -> None:
    """Case 6, 7: per-sample gradients by vmap are no calls that count, and don't break."""
    model = autoencoder().eval()
    preconditioner = Preconditioner(model, **EXACT)
    inputs, targets = batch_for(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return half_square(functional_call(model, values, (x[None],)), y[None])

    one = torch.func.grad(loss)(parameters, inputs[0], targets[0])
    assert one.keys() == parameters.keys()
    many = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, inputs, targets)
    torch.testing.assert_close(many["0.weight"][0], one["0.weight"])
    assert not any(layer.ledger.calls for layer in preconditioner.engine.layers)


def test_training_by_torch_func_says_that_statistics_are_missing() -> None:
    """Case 7: never silently none."""
    model = autoencoder().eval()
    preconditioner = Preconditioner(model, **EXACT)
    inputs, targets = batch_for(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    found = torch.func.grad(lambda p: half_square(functional_call(model, p, (inputs,)), targets))(
        parameters
    )
    for name, parameter in model.named_parameters():
        parameter.grad = found[name]
    with pytest.warns(CurvatureWarning, match=r"torch\.func") as caught:
        preconditioner.step()
    assert len(caught) == len(preconditioner.engine.layers)
