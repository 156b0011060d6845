"""Data sets, in memory or read as they are needed, in an order of (seed, epoch, step) alone.

Nothing here keeps a state between batches, so a resumed run sees exactly the batches, and the
augmentation, that the uninterrupted run would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_TEST_BATCH = 250  # small: evaluation must not set the peak of memory
_SEED_STRIDE = 1_000_003  # prime: streams of neighbouring seeds, epochs and steps do not meet


class Data(Protocol):
    """What the training loop needs to know of a data set."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""

    def test_batches(self) -> Iterator[Batch]:
        """Yields the whole test set, in a fixed order."""


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
        batch_size: Samples per step; at most the number of training samples.
        seed: Seed of order and augmentation.
        augment: Changes a training batch at random, or None.
        device: Where batches are put.
        memory_format: Layout of image batches.

    Raises:
        ValueError: ``batch_size`` is not in 1 … training samples.
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
    ) -> None:
        samples = len(splits.train.targets)
        if not 1 <= batch_size <= samples:
            raise ValueError(f"batch_size={batch_size} must be in 1 … {samples} (training samples)")
        self._splits = splits
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
        for number in range(first, self.steps_per_epoch):
            start = number * self._batch_size
            index = order[start : start + self._batch_size]
            inputs = train.inputs[index]
            if self._augment is not None:
                inputs = self._augment(inputs, random_stream(self._seed, epoch, number))
            yield self._place(inputs), train.targets[index].to(self._device)

    def test_batches(self) -> Iterator[Batch]:
        """Yields the whole test set, in a fixed order."""
        test = self._splits.test
        for inputs, targets in zip(
            torch.split(test.inputs, _TEST_BATCH),
            torch.split(test.targets, _TEST_BATCH),
            strict=True,
        ):
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

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the changed batch.

        Args:
            images: ``[N, C, H, W]``; not modified.
            generator: Source of the shifts and flips.
        """
        count, _, height, width = images.shape
        pad = self.padding
        padded = functional.pad(images, (pad, pad, pad, pad), value=self.background)
        shifts = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        across = torch.arange(width)
        rows = shifts[0] + torch.arange(height)
        columns = shifts[1] + torch.where(flipped, across.flip(0), across)
        # Indices around a slice put the indexed dimensions first: [N, H, W, C], moved back here.
        sample = torch.arange(count)[:, None, None]
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
