"""Promise: a world of one behaves as the undistributed optimizer, bit for bit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from helpers import AT_EVERY_STEP, assert_same_weights, train
from models import Transformer, autoencoder, batch_for, included
from torch_thor import THOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(),
        reason="torch was built without gloo",
    ),
]


@pytest.fixture(autouse=True)
def world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("build", [Transformer, autoencoder])
@pytest.mark.parametrize("given", ["the module", "the wrapper"])
def test_ddp_over_one_process_changes_no_bit(build: type, given: str) -> None:
    """Case 42."""
    model = build()
    twin = copy.deepcopy(model)
    batches = [batch_for(model) for _ in range(4)]
    wrapped = DistributedDataParallel(model)
    tracked = model if given == "the module" else wrapped
    optimizer = THOR(
        tracked, norm_control="graft", lr=0.05, include=included(model), **AT_EVERY_STEP
    )
    train(wrapped, optimizer, batches)
    train(
        twin,
        THOR(twin, norm_control="graft", lr=0.05, include=included(twin), **AT_EVERY_STEP),
        batches,
    )
    assert_same_weights(model, twin)
