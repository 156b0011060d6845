"""Data sets of which samples are picked, and random streams of (seed, epoch, step) alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Batch: TypeAlias = Any  # tensors, in any structure

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
    """Samples that can be picked, for training or for the test."""

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


S_co = TypeVar("S_co", covariant=True)


@dataclass(frozen=True)
class TrainTest(Generic[S_co]):
    """Training and test data: splits, or streams of batches."""

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
