"""Batches, in an order of (seed, epoch, step) alone.

Nothing here keeps a state between epochs, so a resumed run sees exactly the batches, and the
augmentation, that the uninterrupted run would have seen.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import torch

from thor_bench.tasks.data import Batch, Split, TrainTest, random_stream
from thor_bench.tasks.streams import Stream
from thor_bench.tasks.trees import placed, rows, samples

Telling = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Share:
    """Which part of the data is this process's: consecutive samples of each training batch.

    Attributes:
        rank: Number of this rank.
        ranks: Number of ranks.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, count: int, what: str) -> slice:
        """Returns this rank's samples of a batch.

        Raises:
            ValueError: The samples cannot be divided.
        """
        if count % self.ranks:
            raise ValueError(f"{what}={count} must be a multiple of {self.ranks} (ranks)")
        own = count // self.ranks
        return slice(self.rank * own, (self.rank + 1) * own)


class Batches(Protocol):
    """Data as batches."""

    @property
    def steps(self) -> int:
        """Training batches of an epoch."""

    def epoch(self, epoch: int, first: int, *, pin: bool) -> Iterator[Batch]:
        """Yields this rank's part of an epoch's training batches, from batch ``first`` on."""

    def whole(self, *, most: int | None, pin: bool) -> Iterator[Batch]:
        """Yields this rank's part of all samples, in a fixed order, in ``most`` batches at most."""


class Picked:
    """Batches of samples that are picked here; each epoch has an order of its own.

    The last, incomplete batch of an epoch is left out: every step has ``batch_size`` samples.
    """

    def __init__(self, split: Split, *, batch_size: int, seed: int, share: Share) -> None:
        self._split, self._batch_size = split, batch_size
        self._seed, self._share = seed, share
        self.steps = len(split) // max(batch_size, 1)

    def check(self) -> None:
        """Checks that training can be cut into batches.

        Raises:
            ValueError: It cannot.
        """
        count = len(self._split)
        if not count:
            raise ValueError("the training data have no sample")
        if not 1 <= self._batch_size <= count:
            message = f"batch_size={self._batch_size} must be in 1 … {count} (training samples)"
            raise ValueError(message)
        self._share.of(self._batch_size, "batch_size")

    def epoch(self, epoch: int, first: int, *, pin: bool) -> Iterator[Batch]:
        """Yields an epoch's batches, see ``Batches``."""
        split, size = self._split, self._batch_size
        order = torch.randperm(len(split), generator=random_stream(self._seed, epoch))
        numbers = range(first, self.steps)
        picks = {number: order[number * size : (number + 1) * size] for number in numbers}
        part = self._share.of(size, "batch_size")
        return split.read(picks, part=part, seed=(self._seed, epoch), pin=pin)

    def whole(self, *, most: int | None, pin: bool) -> Iterator[Batch]:
        """Yields all samples, see ``Batches``."""
        split, share = self._split, self._share
        picks = torch.split(torch.arange(len(split)), split.test_batch)[share.rank :: share.ranks]
        picks = picks[:most]
        seed = (self._seed, 0)
        return split.read(dict(enumerate(picks)), part=slice(None), seed=seed, pin=pin)


class Streamed:
    """Batches as the data give them; a resumed epoch reads again what it had."""

    def __init__(self, stream: Stream, *, steps: int, seed: int, share: Share) -> None:
        self._stream, self._seed, self._share = stream, seed, share
        self.steps = steps

    def epoch(self, epoch: int, first: int, *, pin: bool) -> Iterator[Batch]:
        """Yields an epoch's batches, see ``Batches``.

        Raises:
            ValueError: There are fewer than promised, or the ranks cannot share one.
        """
        del pin  # a loader knows for itself
        number = 0
        for number, batch in enumerate(self._stream.read(self._seed, epoch), start=1):
            if number > first:
                whole = self._share.ranks == 1
                yield batch if whole else rows(batch, self._share.of(samples(batch), "a batch"))
            if number == self.steps:
                return
        message = f"the training data ended after {number} of {self.steps} batches of an epoch"
        raise ValueError(f"{message}; set steps_per_epoch to what there are")

    def whole(self, *, most: int | None, pin: bool) -> Iterator[Batch]:
        """Yields all batches, see ``Batches``; every rank reads all and takes each in turn.

        Raises:
            ValueError: There is none.
        """
        del pin
        batches = self._stream.read(0, 0)
        first = next(batches, None)
        if first is None:
            raise ValueError("the test data have no batch; give some")
        own = islice(chain([first], batches), self._share.rank, None, self._share.ranks)
        yield from islice(own, most)


class Data:
    """The batches of a run.

    Args:
        splits: Training and test data.
        batch_size: Samples per step, of all ranks together; a stream has its own.
        steps_per_epoch: Batches of an epoch at most; a stream without a length needs it.
        seed: Seed of order and augmentation.
        device: Where batches are put.
        memory_format: Layout of image batches.
        share: This rank's part.
        telling: Context for what the data do.

    Attributes:
        steps_per_epoch: Number of training batches in an epoch.

    Raises:
        ValueError: There are no samples, ``batch_size`` is not in 1 … training samples, or cannot
            be divided.
    """

    def __init__(
        self,
        splits: TrainTest[Any],
        *,
        batch_size: int | None,
        seed: int,
        steps_per_epoch: int | None = None,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        share: Share = Share(),
        telling: Telling = lambda _doing: nullcontext(),
    ) -> None:
        self._device = device or torch.device("cpu")
        self._memory_format, self._telling = memory_format, telling
        self._train = _training(splits.train, batch_size, steps_per_epoch, seed, share)
        self._test: Batches = (
            Streamed(splits.test, steps=0, seed=0, share=share)
            if isinstance(splits.test, Stream)
            else Picked(splits.test, batch_size=1, seed=seed, share=share)
        )
        if isinstance(self._test, Picked) and not len(splits.test):
            raise ValueError("the test data have no sample; give some")
        most = self._train.steps
        self.steps_per_epoch = most if steps_per_epoch is None else min(steps_per_epoch, most)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""
        on_gpu = self._device.type == "cuda"
        left = self.steps_per_epoch - first
        batches = islice(self._train.epoch(epoch, first, pin=on_gpu), left)
        return self._placed(batches, "reading the training data")

    def test_batches(self, most: int | None = None) -> Iterator[Batch]:
        """Yields this rank's part of the test set, in a fixed order, or its first batches."""
        on_gpu = self._device.type == "cuda"
        return self._placed(self._test.whole(most=most, pin=on_gpu), "reading the test data")

    def _placed(self, batches: Iterator[Batch], doing: str) -> Iterator[Batch]:
        wait = self._device.type != "cuda"
        while True:
            with self._telling(doing):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                batch = placed(batch, self._device, memory_format=self._memory_format, wait=wait)
            yield batch


def _training(
    train: Any, batch_size: int | None, steps: int | None, seed: int, share: Share
) -> Batches:
    if isinstance(train, Stream):
        length = train.length
        known = steps if length is None else length
        if known is None:
            raise ValueError("the training data have no length; set steps_per_epoch")
        if not known:
            raise ValueError("the training data have no batch")
        return Streamed(train, steps=known, seed=seed, share=share)
    picked = Picked(train, batch_size=batch_size or 0, seed=seed, share=share)
    picked.check()
    return picked
