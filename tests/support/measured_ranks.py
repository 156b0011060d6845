"""What ranks do whose block sizes are measured; it runs in processes of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_thor import THOR, Distributed

if TYPE_CHECKING:
    from torch_thor.options.curvature import MeasuredSplit


@dataclass(frozen=True)
class Measured:
    """What a rank ended with.

    Args:
        blocks: Block sizes of (A, G) of every stack.
        weights: The model's parameters.
        restored: Block sizes after a checkpoint was loaded into a new optimizer.
    """

    blocks: list[tuple[int, int]]
    weights: list[Tensor]
    restored: list[tuple[int, int]]


def blocks_of(optimizer: THOR) -> list[tuple[int, int]]:
    stacks = optimizer.engine.stacks
    return [(stack.a.partition.block, stack.g.partition.block) for stack in stacks]


def train_measured(split: MeasuredSplit) -> Measured:
    """Each rank has samples of its own, and only the first may measure."""
    model = nn.Sequential(nn.Linear(160, 640), nn.Tanh(), nn.Linear(640, 3))

    def build() -> THOR:
        sharing = Distributed(reduce_gradients=True)
        return THOR(
            model, norm_control="graft", lr=0.05, split=split, interval=2, distributed=sharing
        )

    optimizer = build()
    draw = torch.Generator().manual_seed(dist.get_rank())
    if dist.get_rank() > 0:
        only_once = AssertionError("a second rank measures")
        mock.patch("torch_thor.curvature.engine.split_rule", side_effect=only_once).start()
    for _ in range(4):
        optimizer.zero_grad()
        outputs = model(torch.randn(32, 160, generator=draw))
        (outputs - torch.randn(32, 3, generator=draw)).square().mean().backward()
        optimizer.step()
    mock.patch.stopall()
    again = build()
    again.load_state_dict(optimizer.state_dict())
    weights = [parameter.detach() for parameter in model.parameters()]
    return Measured(blocks_of(optimizer), weights, blocks_of(again))
