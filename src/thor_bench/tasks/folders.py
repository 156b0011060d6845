"""Images in one folder per class, read ahead of training by worker processes."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thor_bench.errors import BenchError, readable, reason
from thor_bench.tasks.data import Batch, random_stream
from thor_bench.tasks.files import torchvision

_MOST_WORKERS = 12
_REMEDY = "replace the file or remove it"


def default_workers() -> int:
    """Returns how many processes read for one rank: one a core, shared by the machine's ranks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(_MOST_WORKERS, (cores or 1) // ranks))


class FolderSplit(Dataset[tuple[Tensor, int]]):
    """Images in one folder per class; classes count in the order of the folders' names.

    Args:
        directory: Folder of the classes' folders.
        transform: ``PIL image -> [3, H, W]``; may draw from torch's global generator.
        workers: Processes that read; 0 reads in this one, None takes one per core.

    Attributes:
        classes: Names of the classes.

    Raises:
        BenchError: There is no image.
    """

    test_batch: ClassVar[int] = 64

    def __init__(
        self, directory: Path, transform: Callable[[Any], Tensor], workers: int | None
    ) -> None:
        try:
            self._images = torchvision("datasets").ImageFolder(str(directory), transform)
        except OSError as error:
            raise BenchError(f"{directory} holds no images ({reason(error)[:120]})") from error
        self._workers = default_workers() if workers is None else workers
        self.classes: list[str] = self._images.classes

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._images)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:
        """Reads a sample; its random changes depend on (seed, epoch, sample) alone."""
        index = key[-1]
        path = Path(self._images.samples[index][0])
        draw = int(torch.randint(2**62, (), generator=random_stream(*key)))
        with torch.random.fork_rng(devices=[]), readable(path, "image", _REMEDY):
            torch.manual_seed(draw)
            image, label = self._images[index]
        return image, int(label)

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches, see ``Split``."""
        keys = [[(*seed, index) for index in pick[part].tolist()] for pick in picks.values()]
        loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            self,
            batch_sampler=keys,
            num_workers=min(self._workers, len(keys)),
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
