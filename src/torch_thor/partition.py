"""How a dimension is cut into diagonal blocks (paper, eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass

from torch_thor.errors import require


@dataclass(frozen=True)
class Partition:
    """Consecutive blocks of equal size; the last one may be padded.

    Args:
        size: Dimension of the factor.
        block: Rows of one block, at most ``size``.
    """

    size: int
    block: int

    def __post_init__(self) -> None:
        """Validates the sizes."""
        require("size", self.size, self.size >= 1, ">= 1")
        require("block", self.block, 1 <= self.block <= self.size, f"in 1..{self.size}")

    @classmethod
    def of(cls, size: int, split: int | None) -> Partition:
        """Cuts ``size`` into blocks of ``split`` rows; ``None`` leaves one block."""
        return cls(size, size if split is None else min(split, size))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.size // self.block)

    @property
    def padded(self) -> int:
        """Rows of all blocks together, padding included."""
        return self.count * self.block

    @property
    def padding(self) -> int:
        """Rows that the last block holds beyond ``size``."""
        return self.padded - self.size
