"""What ranks do in the tests of statistics; it runs in processes of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from helpers import mean_half_square
from torch_thor import THOR

if TYPE_CHECKING:
    from torch_thor import LayerNumbers

SAMPLES = 8


def network() -> nn.Sequential:
    """Rows that split in two shards of whole blocks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4))


def steps(model: nn.Module, thor: THOR, rank: int, size: int) -> tuple[LayerNumbers, ...]:
    """Three steps on this rank's samples; rank 1 asks nothing in between."""
    torch.manual_seed(1)
    for _ in range(3):
        inputs, targets = torch.randn(SAMPLES, 6), torch.randn(SAMPLES, 4)
        thor.zero_grad()
        mean_half_square(model(inputs.chunk(size)[rank]), targets.chunk(size)[rank]).backward()
        thor.step()
        if rank == 0:
            thor.statistics().numbers()
    return thor.statistics().numbers()


def built(model: nn.Module) -> THOR:
    """All layers with curvature, in blocks that lie on one rank, and no lengths of whole layers."""
    return THOR(model, norm_control=None, lr=0.01, interval=2, split=2)


def everything() -> dict[str, tuple[LayerNumbers, ...]]:
    """What each rank reads."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    model = network()
    thor = built(model)
    found["ddp"] = steps(DistributedDataParallel(model), thor, rank, size)
    sharded = network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (size,)))
    found["fsdp"] = steps(sharded, built(sharded), rank, size)
    return found
