"""Running averages of how long the rows of directions are, to make output units step alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.factors import kept_share

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST = 1e-12  # of a mean square that is divided by; the mean of all rows is 1


class RowAverages:
    """Mean squares of the rows of each layer's directions (NorMuon, Li et al. 2025).

    A row's share is its mean square ÷ that of the whole layer, so that the length of a direction,
    which damping and refreshes change, does not enter.

    Args:
        layers: L, layers of the stack.
        matrices: k, matrices of one layer.
        rows: Rows of a matrix.
        dtype: Type of the averages.
        device: Device of the layers.

    Attributes:
        shares: ``[L, k, rows]``, running averages of the shares.
        weights: Each layer's weight of its average, see ``kept_share``.
    """

    def __init__(
        self, layers: int, matrices: int, rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates empty averages."""
        self.shares = torch.zeros(layers, matrices, rows, dtype=dtype, device=device)
        self.weights = [0.0] * layers

    def even(self, slots: Sequence[int], directions: Tensor, decay: float) -> None:
        """Divides the rows of directions by the roots of their averages, in place.

        Args:
            slots: The layers.
            directions: ``[l, k, rows, columns]``.
            decay: Weight ρ of the old average.
        """
        squares = torch.linalg.vector_norm(directions, dim=3).to(self.shares.dtype).square()
        factors = self.factors(slots, squares, decay)
        directions.mul_(factors.to(directions.dtype).unsqueeze(-1))

    def factors(self, slots: Sequence[int], squares: Tensor, decay: float) -> Tensor:
        """Folds new directions in and returns what their rows are to be multiplied by.

        Args:
            slots: The layers.
            squares: ``[l, k, rows]``, squared lengths of the rows.
            decay: Weight ρ of the old average.

        Returns:
            ``[l, k, rows]``; a direction of zeros changes no average and stays.
        """
        mean = squares.mean((1, 2), keepdim=True)
        steps = [kept_share(decay, self.weights[slot]) for slot in slots]
        for slot, (_, following) in zip(slots, steps, strict=True):
            self.weights[slot] = following
        fresh = torch.tensor([1.0 - keep for keep, _ in steps], dtype=mean.dtype)
        # Every layer of the stack: no copies out and back.
        whole = len(steps) == len(self.weights)
        old = self.shares if whole else self.shares[list(slots)]
        known = mean > 0
        shares = torch.where(known, squares / torch.where(known, mean, 1.0), old)
        new = old.lerp(shares, fresh.to(mean.device).view(-1, 1, 1))
        if whole:
            self.shares = new
        else:
            self.shares[list(slots)] = new
        return new.clamp_min(_LEAST).rsqrt()

    def saved(self, slot: int) -> Tensor:
        """Returns what a checkpoint has to hold of a layer: ``[k · rows + 1]``, its weight last."""
        weight = self.shares.new_tensor([self.weights[slot]])
        return torch.cat([self.shares[slot].flatten(), weight])

    def restore(self, slot: int, saved: Tensor) -> None:
        """Takes over what ``saved`` returned."""
        self.shares[slot] = saved[:-1].view_as(self.shares[slot])
        self.weights[slot] = float(saved[-1])
