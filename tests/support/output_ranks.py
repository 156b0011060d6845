"""What ranks do in the tests of output layers; it runs in processes of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from helpers import mean_half_square, mlp
from torch_thor import THOR, Base


def trained(outputs: bool) -> tuple[list[str], list[Tensor], int]:
    """Output layers, weights and messages after three steps; rank 0 has no samples in the first."""
    torch.manual_seed(3)
    model: Any = mlp()
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model, base=Base("adamw", outputs=outputs))
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(3):
        optimizer.zero_grad()
        none = step == 0 and dist.get_rank() == 0
        found: Tensor = wrapped(torch.randn(0 if none else 8, 5, generator=generator))
        (found.sum() if none else mean_half_square(found, torch.zeros(8, 3))).backward()
        optimizer.step()
    left = [one.name for one in optimizer.coverage() if one.reason == "output layer"]
    weights = [p.detach().clone() for p in model.parameters()]
    return left, weights, optimizer.traffic.messages
