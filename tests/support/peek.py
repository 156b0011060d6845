"""What the engine holds, as dense matrices that can be compared with the oracle's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from torch_thor.curvature.surface import HasCurvature


def factors_of(trainer: HasCurvature, name: str = "") -> list[tuple[Tensor, Tensor]]:
    """(A, G) of every matrix of a layer."""
    (pair,) = [
        [dense(factor.blocks[slot], factor.partition.size) for factor in (stack.a, stack.g)]
        for stack in trainer.engine.stacks
        for slot, layer in enumerate(stack.layers)
        if layer.name == name
    ]
    return list(zip(*pair, strict=True))


def dense(blocks: Tensor, size: int) -> list[Tensor]:
    """Blocks [k, n, s, s] as k matrices, without the padding of the last block."""
    return [_diagonal(matrix)[:size, :size] for matrix in blocks]


def _diagonal(blocks: Tensor) -> Tensor:
    whole: Tensor = torch.block_diag(*blocks)
    return whole
