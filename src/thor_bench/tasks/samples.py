"""Data sets with length and index, read ahead of training by worker processes where asked."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from thor_bench.errors import BenchError
from thor_bench.tasks.data import Batch, random_stream
from thor_bench.tasks.streams import Draws, seed_all

_MOST_WORKERS = 12


def default_workers() -> int:
    """Returns how many processes read for one rank: one a core, shared by the machine's ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, (cores or 1) // ranks))


class Samples(Dataset[Any]):
    """A data set, sample by sample.

    Args:
        dataset: Has length and index; a sample may draw from the global generators.
        test_batch: Samples of a batch in evaluation.
        workers: Processes that read; 0 reads in this one.
        collate: ``[sample, ...] -> batch``; None: torch's.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        test_batch: int,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.test_batch = test_batch
        self._workers = workers
        self._collate = collate or default_collate

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[tuple[int, int, int]]) -> list[Any]:
        """Reads samples; the random changes of each depend on (seed, epoch, sample) alone."""
        found = []
        with Draws(0):
            for key in keys:
                seed_all(int(torch.randint(2**62, (), generator=random_stream(*key))))
                found.append(self.sample(key[-1]))
        return found

    def sample(self, index: int) -> Any:
        """Reads one sample."""
        return self.dataset[index]

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches, see ``Split``."""
        keys = [[(*seed, index) for index in pick[part].tolist()] for pick in picks.values()]
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_sampler=keys,
            num_workers=min(self._workers, len(keys)),
            collate_fn=self._collate,
            pin_memory=pin,
            # The default draws its base seed from torch's global generator, which training uses.
            generator=torch.Generator().manual_seed(0),
        )
        try:
            yield from loader
        except BenchError as error:
            # A worker's error comes with its traceback; the user needs the last line.
            told = str(error).strip().splitlines()[-1]
            raise BenchError(told.rpartition("BenchError: ")[2]) from error
