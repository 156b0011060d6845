"""Batches, in an order of (seed, epoch, step) alone.

Nothing here keeps a state between batches, so a resumed run sees exactly the batches, and the
augmentation, that the uninterrupted run would have seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Batch = tuple[Tensor, Tensor]

_SEED_STRIDE = 1_000_003  # prime: streams of neighbouring seeds, epochs and steps do not meet


def random_stream(*parts: int) -> torch.Generator:
    """Returns a random stream of its own for a tuple of numbers."""
    seed = 0
    for part in parts:
        seed = (seed * _SEED_STRIDE + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class FlipAndCrop:
    """Flips half of the images left to right and moves each by up to ``padding`` pixels.

    Attributes:
        padding: Largest shift in each direction, in pixels.
        background: Value of the pixels that come in from outside, as normalized.
    """

    padding: int
    background: float

    def __call__(
        self, images: Tensor, generator: torch.Generator, *, whole: int, part: slice
    ) -> Tensor:
        """Returns changed copies of images.

        Args:
            images: This rank's part of a batch, ``[N, C, H, W]``.
            generator: Source of the draws, in the same state on all ranks.
            whole: Samples of the batch, for each of which there are draws.
            part: Which of them are this rank's.
        """
        count, _, height, width = images.shape
        pad = self.padding
        padded = functional.pad(images, (pad, pad, pad, pad), value=self.background)
        shifts = torch.randint(0, 2 * pad + 1, (2, whole, 1), generator=generator)[:, part]
        flipped = torch.rand(whole, 1, generator=generator)[part] < 0.5
        across = torch.arange(width)
        rows = shifts[0] + torch.arange(height)
        columns = shifts[1] + torch.where(flipped, across.flip(0), across)
        # Indices around a slice put the indexed dimensions first: [N, H, W, C], moved back here.
        sample = torch.arange(count)[:, None, None]
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


class Split(Protocol):
    """Samples and their targets, for training or for the test."""

    @property
    def test_batch(self) -> int:
        """Samples of a batch in evaluation, which must not set the peak of memory."""

    def __len__(self) -> int:
        """Returns the number of samples."""

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches.

        Args:
            picks: Samples of each batch, of all ranks, by its number in the epoch.
            part: Which samples of each batch are read.
            seed: (seed, epoch), from which random changes are drawn.
            pin: Whether batches go to a GPU.
        """


S_co = TypeVar("S_co", bound=Split, covariant=True)


@dataclass(frozen=True)
class TrainTest(Generic[S_co]):
    """A data set with its fixed division."""

    train: S_co
    test: S_co


@dataclass(frozen=True)
class TensorSplit:
    """Samples in memory.

    Attributes:
        inputs: ``[samples, ...]``, normalized.
        targets: ``[samples, ...]``.
        augment: Changes a batch at random, or None.
    """

    inputs: Tensor
    targets: Tensor
    augment: FlipAndCrop | None = None

    test_batch: ClassVar[int] = 250

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.targets)

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches, see ``Split``."""
        del pin  # for workers
        for number, samples in picks.items():
            index = samples[part]
            inputs = self.inputs[index]
            if self.augment is not None:
                stream = random_stream(*seed, number)
                inputs = self.augment(inputs, stream, whole=len(samples), part=part)
            yield inputs, self.targets[index]


class Data:
    """The batches of a run; each epoch has an order of its own.

    The last, incomplete batch of an epoch is left out: every step has ``batch_size`` samples.

    Args:
        splits: Training and test samples.
        batch_size: Samples per step, of all ranks together.
        seed: Seed of order and augmentation.
        device: Where batches are put.
        memory_format: Layout of image batches.
        rank: Number of this rank, which has consecutive samples of each training batch.
        ranks: Number of ranks.

    Attributes:
        steps_per_epoch: Number of training batches in an epoch.

    Raises:
        ValueError: ``batch_size`` is not in 1 … training samples, or cannot be divided.
    """

    def __init__(
        self,
        splits: TrainTest[Split],
        *,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        samples = len(splits.train)
        if not 1 <= batch_size <= samples:
            raise ValueError(f"batch_size={batch_size} must be in 1 … {samples} (training samples)")
        if batch_size % ranks:
            raise ValueError(f"batch_size={batch_size} must be a multiple of {ranks} (ranks)")
        self.steps_per_epoch = samples // batch_size
        self._splits = splits
        self._rank, self._ranks = rank, ranks
        self._batch_size, self._seed = batch_size, seed
        self._device = device or torch.device("cpu")
        self._memory_format = memory_format

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""
        train, size = self._splits.train, self._batch_size
        order = torch.randperm(len(train), generator=random_stream(self._seed, epoch))
        numbers = range(first, self.steps_per_epoch)
        picks = {number: order[number * size : (number + 1) * size] for number in numbers}
        own = size // self._ranks
        return self._placed(train, picks, slice(self._rank * own, (self._rank + 1) * own), epoch)

    def test_batches(self) -> Iterator[Batch]:
        """Yields this rank's part of the test set, in a fixed order."""
        test = self._splits.test
        picks = torch.split(torch.arange(len(test)), test.test_batch)[self._rank :: self._ranks]
        return self._placed(test, dict(enumerate(picks)), slice(None), 0)

    def _placed(
        self, split: Split, picks: Mapping[int, Tensor], part: slice, epoch: int
    ) -> Iterator[Batch]:
        on_gpu = self._device.type == "cuda"
        seed = (self._seed, epoch)
        for inputs, targets in split.read(picks, part=part, seed=seed, pin=on_gpu):
            layout = self._memory_format if inputs.dim() == 4 else torch.preserve_format
            placed = inputs.to(self._device, memory_format=layout, non_blocking=on_gpu)
            yield placed, targets.to(self._device, non_blocking=on_gpu)
