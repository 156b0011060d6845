"""How a dimension is cut into diagonal blocks (paper, eq. 10)."""

from __future__ import annotations

from dataclasses import dataclass

from torch_thor.options.errors import require

_ALIGNED = 8  # copies and products of odd row lengths take up to three times as long


@dataclass(frozen=True)
class Partition:
    """Consecutive blocks of equal size; the last one may be padded.

    A split of s asks for at most s rows a block. The rows are spread evenly over as few
    blocks as that takes, so that little or no padding is carried along: 512 rows at a
    split of 72 are 8 blocks of 64, not 7 of 72 and a tail of 8. Where that leaves padding
    and a multiple of eight just below s (or below the block that came out) does not, blocks
    have that size: 1024 rows are 16 blocks of 64, not 15 of 69.
    """

    size: int  # dimension of the factor
    block: int  # rows of one block, at most ``size``

    def __post_init__(self) -> None:
        require("size", self.size, self.size >= 1, ">= 1")
        require("block", self.block, 1 <= self.block <= self.size, f"in 1..{self.size}")

    @classmethod
    def of(cls, size: int, split: int | None) -> Partition:
        """Cuts ``size`` into equal blocks of at most ``split`` rows; ``None`` leaves one block."""
        if split is None or split >= size:
            return cls(size, size)
        even = cls(size, -(-size // -(-size // split)))
        if even.padding:
            for aligned in range(split - split % _ALIGNED, split * 3 // 4, -_ALIGNED):
                if size % aligned == 0:
                    return cls(size, aligned)
        # A checkpoint holds the block: cut by it, the rows must come out the same.
        return cls.of(size, even.block) if even.block < split else even

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
