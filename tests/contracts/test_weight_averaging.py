"""Promise: EMA, SWA and copies of a hooked model work and don't disturb the optimizer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from helpers import AT_EVERY_STEP, assert_same_weights, train
from models import Transformer, autoencoder, batch_for, included
from torch_thor import THOR


def optimizer_of(model: nn.Module) -> THOR:
    return THOR(model, norm_control="graft", lr=0.05, include=included(model), **AT_EVERY_STEP)


@pytest.mark.parametrize("build", [Transformer, autoencoder])
def test_swa_and_ema_take_the_whole_recipe(build: type) -> None:
    """Case 12: AveragedModel, SWALR, update_bn, and back."""
    torch.manual_seed(0)
    model = build()
    twin = copy.deepcopy(model)
    optimizer, alone = optimizer_of(model), optimizer_of(twin)
    batches = [batch_for(model) for _ in range(5)]
    averages = [
        swa_utils.AveragedModel(model),
        swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
    ]
    for batch in batches:
        train(model, optimizer, [batch])
        train(twin, alone, [batch])
        for average in averages:
            average.update_parameters(model)
            average(batch[0])  # a forward of the copy is no call of the model
    for average in averages:
        swa_utils.update_bn([batch[0] for batch in batches], average)
        assert average(batches[0][0]).isfinite().all()
    assert_same_weights(model, twin)


@pytest.mark.parametrize("build", [Transformer, autoencoder])
def test_a_copy_or_a_pickle_in_the_middle_of_training_goes_on_alike(build: type) -> None:
    """Case 12."""
    model = build()
    optimizer = optimizer_of(model)
    batches = [batch_for(model) for _ in range(4)]
    train(model, optimizer, batches[:2])
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other = optimizer_of(clone)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert all(not layer.ledger.calls for layer in optimizer.engine.layers)
        train(clone, other, batches[2:])
        train(clone, other, batches[2:])
    train(model, optimizer, batches[2:])
    train(model, optimizer, batches[2:])
    assert_same_weights(model, clone)
