"""Data sets, in memory or read as they are needed, in an order of (seed, epoch, step) alone.

Nothing here keeps a state between batches, so a resumed run sees exactly the batches, and the
augmentation, that the uninterrupted run would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Batch = tuple[Tensor, Tensor]

_TEST_BATCH = 250  # small: evaluation must not set the peak of memory
_SEED_STRIDE = 1_000_003  # prime: streams of neighbouring seeds, epochs and steps do not meet


@dataclass(frozen=True)
class Share:
    """The part of every batch that one rank trains on: consecutive samples.

    Attributes:
        rank: Number of the rank, from 0.
        ranks: Number of ranks.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, samples: int) -> slice:
        """Returns which samples of a batch are this rank's; ``ranks`` divides ``samples``."""
        own = samples // self.ranks
        return slice(self.rank * own, (self.rank + 1) * own)

    def check(self, batch_size: int, samples: int) -> None:
        """Checks that a batch can be taken from the data and divided.

        Args:
            batch_size: Samples per step, of all ranks together.
            samples: Number of training samples.

        Raises:
            ValueError: It cannot.
        """
        if not 1 <= batch_size <= samples:
            raise ValueError(f"batch_size={batch_size} must be in 1 … {samples} (training samples)")
        if batch_size % self.ranks:
            raise ValueError(f"batch_size={batch_size} must be a multiple of {self.ranks} (ranks)")


WHOLE = Share()


class Augmentation(Protocol):
    """Changes a training batch at random."""

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share = WHOLE) -> Tensor:
        """Returns the changed images; a rank's draws are its part of the whole batch's draws.

        Args:
            images: This rank's part of a batch; not modified.
            generator: Source of the draws, in the same state on all ranks.
            share: Which part it is.
        """


class Data(Protocol):
    """What the training loop needs to know of a data set."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""

    def test_batches(self) -> Iterator[Batch]:
        """Yields this rank's part of the test set, in a fixed order."""


@dataclass(frozen=True)
class TensorSplit:
    """Samples and their targets.

    Attributes:
        inputs: ``[samples, ...]``, normalized.
        targets: ``[samples, ...]``.
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class TrainTest:
    """A data set with its fixed division."""

    train: TensorSplit
    test: TensorSplit


def random_stream(*parts: int) -> torch.Generator:
    """Returns a random stream of its own for a tuple of numbers."""
    seed = 0
    for part in parts:
        seed = (seed * _SEED_STRIDE + part + 1) % 2**63
    return torch.Generator().manual_seed(seed)


class InMemoryData:
    """A data set in memory; batches are cut by index from a permutation of each epoch.

    The last, incomplete batch of an epoch is left out: every step has ``batch_size`` samples.

    Args:
        splits: Training and test samples.
        batch_size: Samples per step, of all ranks; at most the number of training samples.
        seed: Seed of order and augmentation.
        augment: Changes a training batch at random, or None.
        device: Where batches are put.
        memory_format: Layout of image batches.
        share: Part of each training batch, and of the test batches, that is this rank's.

    Raises:
        ValueError: ``batch_size`` is not in 1 … training samples, or cannot be divided.
    """

    def __init__(
        self,
        splits: TrainTest,
        *,
        batch_size: int,
        seed: int,
        augment: Augmentation | None = None,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        share: Share = WHOLE,
    ) -> None:
        share.check(batch_size, len(splits.train.targets))
        self._splits = splits
        self._share = share
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._device = device or torch.device("cpu")
        self._memory_format = memory_format

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return len(self._splits.train.targets) // self._batch_size

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""
        train = self._splits.train
        order = torch.randperm(len(train.targets), generator=random_stream(self._seed, epoch))
        part = self._share.of(self._batch_size)
        for number in range(first, self.steps_per_epoch):
            start = number * self._batch_size
            index = order[start : start + self._batch_size][part]
            inputs = train.inputs[index]
            if self._augment is not None:
                stream = random_stream(self._seed, epoch, number)
                inputs = self._augment(inputs, stream, self._share)
            yield self._place(inputs), train.targets[index].to(self._device)

    def test_batches(self) -> Iterator[Batch]:
        """Yields this rank's part of the test set, in a fixed order."""
        test = self._splits.test
        batches = zip(
            torch.split(test.inputs, _TEST_BATCH),
            torch.split(test.targets, _TEST_BATCH),
            strict=True,
        )
        for inputs, targets in islice(batches, self._share.rank, None, self._share.ranks):
            yield self._place(inputs), targets.to(self._device)

    def _place(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 4:
            return inputs.to(self._device)
        return inputs.to(self._device, memory_format=self._memory_format)


@dataclass(frozen=True)
class FlipAndCrop:
    """Flips half of the images left to right and moves each by up to ``padding`` pixels.

    Attributes:
        padding: Largest shift in each direction, in pixels.
        background: Value of the pixels that come in from outside, as normalized.
    """

    padding: int
    background: float

    def __call__(self, images: Tensor, generator: torch.Generator, share: Share = WHOLE) -> Tensor:
        """Returns the changed images, see ``Augmentation``.

        Args:
            images: ``[N, C, H, W]``; not modified.
            generator: Source of the shifts and flips.
            share: Which part of a batch the images are.
        """
        count, _, height, width = images.shape
        pad = self.padding
        padded = functional.pad(images, (pad, pad, pad, pad), value=self.background)
        whole = count * share.ranks
        part = share.of(whole)
        shifts = torch.randint(0, 2 * pad + 1, (2, whole, 1), generator=generator)[:, part]
        flipped = torch.rand(whole, 1, generator=generator)[part] < 0.5
        across = torch.arange(width)
        rows = shifts[0] + torch.arange(height)
        columns = shifts[1] + torch.where(flipped, across.flip(0), across)
        # Indices around a slice put the indexed dimensions first: [N, H, W, C], moved back here.
        sample = torch.arange(count)[:, None, None]
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
