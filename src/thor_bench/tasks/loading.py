"""Data sets that are read file by file while training goes on, by worker processes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thor_bench.errors import BenchError, reason
from thor_bench.tasks.data import WHOLE, Batch, Share, random_stream

_TEST_BATCH = 64
_MOST_WORKERS = 12


class Samples(Protocol):
    """Samples that are read one by one."""

    def __len__(self) -> int:
        """Returns the number of samples."""

    def read(self, index: int) -> tuple[Tensor, int]:
        """Reads a sample as ``([C, H, W], class)``; may draw from torch's global generator."""

    def path(self, index: int) -> Path:
        """Returns the file of a sample, for messages."""


@dataclass(frozen=True)
class LazyTrainTest:
    """A data set on disk with its fixed division."""

    train: Samples
    test: Samples


class _Seeded(Dataset[tuple[Tensor, int]]):
    """Samples whose random changes depend on (seed, epoch, sample) alone."""

    def __init__(self, samples: Samples, *stream: int) -> None:
        self._samples = samples
        self._stream = stream

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        seed = int(torch.randint(2**62, (), generator=random_stream(*self._stream, index)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self._samples.read(index)
            except (OSError, ValueError, SyntaxError) as error:
                message = f"{self._samples.path(index)} is no readable image ({reason(error)})"
                raise BenchError(f"{message}; replace the file or remove it") from error


def default_workers() -> int:
    """Returns how many processes read for one rank: one a core, shared by the machine's ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, (cores or 1) // ranks))


class LoaderData:
    """A data set that worker processes read ahead of the training loop.

    The last, incomplete batch of an epoch is left out: every step has ``batch_size`` samples.

    Args:
        splits: Training and test samples.
        batch_size: Samples per step, of all ranks; at most the number of training samples.
        seed: Seed of order and augmentation.
        device: Where batches are put.
        memory_format: Layout of image batches.
        workers: Processes that read; 0 reads in this one, None takes one per core.
        share: Part of each training batch, and of the test batches, that is this rank's.

    Raises:
        ValueError: ``batch_size`` is not in 1 … training samples, or cannot be divided.
    """

    def __init__(
        self,
        splits: LazyTrainTest,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        workers: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        share.check(batch_size, len(splits.train))
        self._share = share
        self._splits = splits
        self._batch_size = batch_size
        self._seed = seed
        self._device = device or torch.device("cpu")
        self._memory_format = memory_format
        self._workers = default_workers() if workers is None else workers

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch."""
        return len(self._splits.train) // self._batch_size

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the training batches of an epoch (from 0), beginning with batch ``first``."""
        samples = self._splits.train
        order = torch.randperm(len(samples), generator=random_stream(self._seed, epoch)).tolist()
        size, part = self._batch_size, self._share.of(self._batch_size)
        picks = [order[n * size : (n + 1) * size][part] for n in range(first, self.steps_per_epoch)]
        yield from self._read(_Seeded(samples, self._seed, epoch), picks)

    def test_batches(self) -> Iterator[Batch]:
        """Yields this rank's part of the test set, in a fixed order."""
        samples = self._splits.test
        every = range(len(samples))
        picks = [list(every[n : n + _TEST_BATCH]) for n in range(0, len(samples), _TEST_BATCH)]
        own = picks[self._share.rank :: self._share.ranks]
        yield from self._read(_Seeded(samples, 0), own)

    def _read(self, samples: _Seeded, picks: list[list[int]]) -> Iterator[Batch]:
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            samples,
            batch_sampler=picks,
            num_workers=min(self._workers, len(picks)),
            pin_memory=self._device.type == "cuda",
            # The default draws its base seed from torch's global generator, which training uses.
            generator=torch.Generator().manual_seed(0),
        )
        try:
            for inputs, targets in loader:
                placed = inputs.to(
                    self._device, memory_format=self._memory_format, non_blocking=True
                )
                yield placed, targets.to(self._device, non_blocking=True)
        except BenchError as error:
            # A worker's error comes with its traceback; the user needs the last line.
            told = str(error).strip().splitlines()[-1]
            raise BenchError(told.rpartition("BenchError: ")[2]) from error
