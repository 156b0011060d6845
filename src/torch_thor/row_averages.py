"""Running averages of how long the rows of directions are, to make output units step alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_thor.factors import kept_share

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST = 1e-12  # of a mean square that is divided by; the mean of all rows is 1


@dataclass(frozen=True)
class EvenRows:
    """What evens the rows of some layers' directions.

    Args:
        factors: ``[l, k, rows]``, what each row is to be multiplied by.
        squares: ``[l, k, rows]``, squared lengths of the rows before that.
    """

    factors: Tensor
    squares: Tensor

    @property
    def lengths(self) -> Tensor:
        """Length of each layer's direction with its rows evened: ``[l]``."""
        return (self.squares * self.factors.square()).sum((1, 2)).sqrt_()


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

    def weigh(self, slots: Sequence[int], directions: Tensor, decay: float) -> EvenRows:
        """Folds directions in and says what evens their rows.

        Args:
            slots: The layers.
            directions: ``[l, k, rows, columns]``.
            decay: Weight ρ of the old average.
        """
        lengths = torch.linalg.vector_norm(directions, dim=3)
        squares = lengths.to(self.shares.dtype).square_()
        return EvenRows(self.fold(slots, squares, decay), squares)

    def fold(self, slots: Sequence[int], squares: Tensor, decay: float) -> Tensor:
        """Folds squared lengths of rows in and returns what the rows are multiplied by.

        A direction of zeros shrinks a layer's averages alike and so changes no direction.

        Args:
            slots: The layers.
            squares: ``[l, k, rows]``.
            decay: Weight ρ of the old average.

        Returns:
            ``[l, k, rows]``.
        """
        mean = squares.mean((1, 2), keepdim=True)
        shares = squares / mean.clamp_min_(torch.finfo(mean.dtype).tiny)
        steps = [kept_share(decay, self.weights[slot]) for slot in slots]
        for slot, (_, following) in zip(slots, steps, strict=True):
            self.weights[slot] = following
        fresh = [1.0 - keep for keep, _ in steps]
        if len(fresh) == len(self.weights) and len(set(fresh)) == 1:
            averages = self.shares.lerp_(shares, fresh[0])
        else:
            old, share = self.shares[list(slots)], shares.new_tensor(fresh).view(-1, 1, 1)
            averages = self.shares[list(slots)] = old.lerp(shares, share)
        return averages.clamp_min(_LEAST).rsqrt_()

    def saved(self, slot: int) -> Tensor:
        """Returns what a checkpoint has to hold of a layer: ``[k · rows + 1]``, its weight last."""
        weight = self.shares.new_tensor([self.weights[slot]])
        return torch.cat([self.shares[slot].flatten(), weight])

    def restore(self, slot: int, saved: Tensor) -> None:
        """Takes over what ``saved`` returned."""
        self.shares[slot] = saved[:-1].view_as(self.shares[slot])
        self.weights[slot] = float(saved[-1])
