"""Block sizes that are measured: one rank measures, all cut alike."""

from __future__ import annotations

import pytest
import torch

from measured_ranks import train_measured
from ranks import on_ranks


@pytest.mark.parametrize("split", ["auto", "per_layer"])
def test_one_rank_measures_and_all_cut_alike(split: str) -> None:
    first, other = on_ranks(2, train_measured, split)
    assert len(first.blocks) == 2
    assert min(first.blocks[0]) > 1
    assert first.blocks == other.blocks
    assert first.restored == other.restored == first.blocks
    assert all(map(torch.equal, first.weights, other.weights))
    assert all(weight.isfinite().all() for weight in first.weights)
