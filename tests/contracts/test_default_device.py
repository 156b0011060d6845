"""Promise: what torch's default device is makes no difference to a model that is elsewhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers import assert_same_weights, convnet, data, mlp, train
from models import Transformer, autoencoder, batch_for, included
from torch_thor import EKFAC, KFAC, THOR, NormControl, Statistics, TraceRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "default": lambda model: THOR(model, lr=0.01, interval=2),
    "norms": lambda model: THOR(model, lr=0.01, interval=2, include=included(model)),
    "few rows": lambda model: THOR(model, lr=0.01, interval=1, statistics=Statistics(rows=12)),
    "fewest rows": lambda model: THOR(model, lr=0.01, interval=1, statistics=Statistics(rows=3)),
    "graft": lambda model: THOR(model, lr=0.01, interval=2, norm_control="graft"),
    "rms": lambda model: THOR(model, lr=0.01, interval=2, norm_control="rms"),
    "even rows": lambda model: THOR(
        model, lr=0.01, interval=2, norm_control=NormControl("graft", row_decay=0.9)
    ),
    "kl_clip": lambda model: THOR(model, lr=0.01, interval=2, norm_control="kl_clip"),
    "power 1": lambda model: THOR(model, lr=0.01, interval=2, power=1.0, split=None),
    "trace rule": lambda model: THOR(model, lr=0.01, interval=2, trace_rule=TraceRule()),
    "distance rule": lambda model: THOR(
        model, lr=0.01, interval=2, trace_rule=TraceRule(compare="distance")
    ),
    "kfac": lambda model: KFAC(model, lr=0.01, factor_interval=1, inverse_interval=2),
    "ekfac": lambda model: EKFAC(model, lr=0.01, factor_interval=1, inverse_interval=2),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "autoencoder": autoencoder,
    "transformer": Transformer,
}


@pytest.fixture
def another_device() -> Iterator[None]:
    """Tensors made without a device get no values, and can't meet those of a real one."""
    before = torch.get_default_device()
    torch.set_default_device("meta")
    yield
    torch.set_default_device(before)


def _batches(model: nn.Module, kind: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [data() if kind == "mlp" else batch_for(model) for _ in range(4)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("option", OPTIMIZERS)
def test_every_tensor_of_a_step_names_its_device(
    kind: str, option: str, request: pytest.FixtureRequest
) -> None:
    """Case 53."""
    model = MODELS[kind]()
    twin, batches = copy.deepcopy(model), _batches(model, kind)
    train(twin, OPTIMIZERS[option](twin), batches)
    request.getfixturevalue("another_device")
    optimizer = OPTIMIZERS[option](model)
    train(model, optimizer, batches)
    assert_same_weights(model, twin)
    again = OPTIMIZERS[option](model)
    again.load_state_dict(optimizer.state_dict())
    train(model, again, batches[:2])
