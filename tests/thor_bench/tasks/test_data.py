"""Batches depend on (seed, epoch, step) alone; augmentation only moves and mirrors pixels."""

from __future__ import annotations

import pytest
import torch

from thor_bench.tasks.batches import Data, Share
from thor_bench.tasks.data import FlipAndCrop, TensorSplit, TrainTest


def splits(samples: int = 10) -> TrainTest[TensorSplit]:
    inputs = torch.arange(samples, dtype=torch.float32).reshape(-1, 1)
    return TrainTest(
        TensorSplit(inputs, torch.arange(samples)),
        TensorSplit(inputs + 100, torch.arange(samples)),
    )


def targets(data: Data, epoch: int, first: int = 0) -> list[list[int]]:
    return [batch[1].tolist() for batch in data.batches(epoch, first)]


def test_an_epoch_shows_each_sample_once_and_leaves_the_rest_out() -> None:
    data = Data(splits(), batch_size=3, seed=0)
    shown = [target for batch in targets(data, 0) for target in batch]
    assert data.steps_per_epoch == 3
    assert len(shown) == len(set(shown)) == 9


def test_inputs_and_targets_stay_together() -> None:
    data = Data(splits(), batch_size=5, seed=0)
    assert all(torch.equal(x[:, 0], y.float()) for x, y in data.batches(0))


def test_order_depends_on_seed_and_epoch_and_goes_on_anywhere() -> None:
    data = Data(splits(), batch_size=2, seed=0)
    again = Data(splits(), batch_size=2, seed=0)
    other = Data(splits(), batch_size=2, seed=1)
    assert targets(data, 3) == targets(again, 3)
    assert targets(data, 3) != targets(data, 4)
    assert targets(data, 3) != targets(other, 3)
    assert targets(again, 3, first=2) == targets(data, 3)[2:]


def test_augmentation_goes_on_anywhere_too() -> None:
    images = torch.rand(8, 1, 6, 6)
    split = TensorSplit(images, torch.arange(8), FlipAndCrop(padding=2, background=0.0))
    data = Data(TrainTest(split, split), batch_size=4, seed=0)
    second = list(data.batches(0))[1][0]
    assert torch.equal(next(data.batches(0, first=1))[0], second)


def test_the_test_set_comes_whole_and_in_order() -> None:
    data = Data(splits(601), batch_size=2, seed=0)
    assert torch.equal(torch.cat([y for _, y in data.test_batches()]), torch.arange(601))


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size} must be in 1 … 10"):
        Data(splits(), batch_size=size, seed=0)


def test_flip_and_crop_gives_one_of_the_possible_views() -> None:
    images = torch.rand(64, 2, 5, 4)
    before = images.clone()
    augment, stream = FlipAndCrop(padding=1, background=-7.0), torch.Generator().manual_seed(0)
    changed = augment(images, stream, whole=64, part=slice(None))
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-7.0)
    used = set()
    for index in range(64):
        views = {
            (row, column, flip): view.flip(-1) if flip else view
            for row in range(3)
            for column in range(3)
            for flip in (False, True)
            for view in [padded[index, :, row : row + 5, column : column + 4]]
        }
        matching = [key for key, view in views.items() if torch.equal(view, changed[index])]
        assert len(matching) == 1
        used.add(matching[0])
    assert len(used) > 12  # of 18: shifts and flips are drawn independently for each image


def test_the_ranks_shares_make_up_the_batch_of_one_process_with_its_augmentation() -> None:
    images = torch.randn(12, 3, 5, 4)
    pair = TrainTest(
        TensorSplit(images, torch.arange(12), FlipAndCrop(padding=1, background=0.0)),
        TensorSplit(torch.randn(600, 3), torch.arange(600)),
    )

    def data(rank: int, ranks: int) -> Data:
        return Data(pair, batch_size=6, seed=0, share=Share(rank, ranks))

    shares = [list(data(rank, 3).batches(1)) for rank in range(3)]
    for number, (inputs, labels) in enumerate(data(0, 1).batches(1)):
        parts = [batches[number] for batches in shares]
        assert [len(y) for _, y in parts] == [2, 2, 2]
        assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
        assert torch.equal(torch.cat([y for _, y in parts]), labels)
    shown = [y.tolist() for rank in range(2) for _, y in data(rank, 2).test_batches()]
    assert sorted(number for labels in shown for number in labels) == list(range(600))


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=5 must be a multiple of 2 \(ranks\)"):
        Data(splits(), batch_size=5, seed=0, share=Share(0, 2))
