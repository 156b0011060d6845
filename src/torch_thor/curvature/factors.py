"""Block-diagonal running covariances, stacked over layers of equal shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor import linalg

if TYPE_CHECKING:
    from torch_thor.linalg.partition import Partition


class FactorStack:
    """One factor (A or G) of L layers of k matrices, cut into n blocks of s rows: averages.

    Attributes:
        blocks: ``[L, k, n, s, s]``; never changed by damping or inversion.
        traces: ``[L, k]``, traces of the running averages.
    """

    def __init__(
        self,
        layers: int,
        matrices: int,
        partition: Partition,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        size = partition.block
        self.partition = partition
        self.blocks = torch.zeros(
            layers, matrices, partition.count, size, size, dtype=dtype, device=device
        )
        self.traces = torch.zeros(layers, matrices, dtype=dtype, device=device)

    def fold(self, slot: int, blocks: Tensor, trace: Tensor, keep: float) -> None:
        """Folds blocks ``[k, n, s, s]`` in: ``keep`` · old + (1 - ``keep``) · new."""
        self.blocks[slot].lerp_(blocks, 1.0 - keep)
        self.traces[slot].lerp_(trace, 1.0 - keep)

    def damped(self, slots: list[int], shift: Tensor) -> Tensor:
        """Blocks ``[l, k, n, s, s]`` of some layers plus shifts ``[l, k]``, padding as identity."""
        chosen = linalg.take(self.blocks, slots)
        chosen.diagonal(dim1=-2, dim2=-1).add_(shift[..., None, None])
        if self.partition.padding:
            chosen[..., -1, :, :].diagonal(dim1=-2, dim2=-1)[..., -self.partition.padding :] = 1.0
        return chosen


def kept_share(decay: float, weight: float) -> tuple[float, float]:
    """Weight of the old average in the next one, and the next average's own weight.

    Carrying the weight makes the first average equal the first batch and every later one
    an unbiased mean (as in kfac-jax): w' = ρw + (1 - ρ), share kept = ρw / w'.
    """
    following = decay * weight + (1.0 - decay)
    return decay * weight / following, following
