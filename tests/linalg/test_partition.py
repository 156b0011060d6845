"""How a dimension is cut into blocks (eq. 10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_thor.linalg.partition import Partition


@pytest.mark.parametrize(
    ("size", "split", "count", "block", "padding"),
    [
        (72, None, 1, 72, 0),
        (72, 72, 1, 72, 0),
        (72, 100, 1, 72, 0),
        (72, 36, 2, 36, 0),
        (73, 36, 3, 25, 2),
        (512, 72, 8, 64, 0),
        (1024, 72, 16, 64, 0),  # 15 of 69 would carry 11 rows of padding
        (3072, 72, 48, 64, 0),
        (576, 128, 6, 96, 0),  # by way of 116, which a checkpoint could not be cut by
        (769, 72, 11, 70, 1),  # no multiple of eight divides it
        (288, 36, 8, 36, 0),  # even already: a channel's taps stay together
        (7, 1, 7, 1, 0),
        (1, None, 1, 1, 0),
    ],
)
def test_cuts(size: int, split: int | None, count: int, block: int, padding: int) -> None:
    cut = Partition.of(size, split)
    assert (cut.count, cut.block, cut.padding) == (count, block, padding)


@given(st.integers(1, 500), st.none() | st.integers(1, 600))
def test_few_equal_blocks_cover_the_dimension_and_only_the_last_is_padded(
    size: int, split: int | None
) -> None:
    cut = Partition.of(size, split)
    assert cut.padded == cut.count * cut.block == size + cut.padding
    assert 0 <= cut.padding < cut.block
    assert split is None or cut.block <= split
    if split is not None and cut.count != -(-size // split):
        assert cut.padding == 0
        assert cut.block > split // 2


@given(st.integers(1, 5000), st.integers(1, 600))
def test_cut_by_its_own_block_a_dimension_comes_out_the_same(size: int, split: int) -> None:
    cut = Partition.of(size, split)
    assert Partition.of(size, cut.block) == cut


@pytest.mark.parametrize(("size", "block"), [(0, 1), (5, 0), (5, 6), (5, -1)])
def test_impossible_cuts_are_refused(size: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"Invalid (size|block)="):
        Partition(size, block)
