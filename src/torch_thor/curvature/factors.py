"""Block-diagonal running covariances, stacked over layers of equal shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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


def kept_share(decay: float, weight: float) -> tuple[float, float]:
    """Weight of the old average in the next one, and the next average's own weight.

    Carrying the weight makes the first average equal the first batch and every later one
    an unbiased mean (as in kfac-jax): w' = ρw + (1 - ρ), share kept = ρw / w'.
    """
    following = decay * weight + (1.0 - decay)
    return decay * weight / following, following
