"""What a user may give as training and test data, and how it is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import Batch, Split, TrainTest
from thor_bench.tasks.samples import Samples
from thor_bench.tasks.streams import Stream
from thor_bench.tasks.trees import mapped, named, tensors

DEFAULT_BATCH = 32


class Given(Protocol):
    """The part of a task that is about its data."""

    @property
    def train(self) -> Any:
        """Training data."""

    @property
    def test(self) -> Any:
        """Test data."""

    @property
    def batch_size(self) -> int | None:
        """Samples of a batch; None where the training data have batches."""

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """What makes a batch of samples; None: torch's."""


@dataclass(frozen=True)
class TreeSplit:
    """Samples in memory, as tensors in any structure.

    Attributes:
        tree: Tensors ``[samples, ...]``.
        count: Number of samples.
        test_batch: Samples of a batch in evaluation.
    """

    tree: Any
    count: int
    test_batch: int

    def __len__(self) -> int:
        """Returns the number of samples."""
        return self.count

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields batches, see ``Split``."""
        del seed, pin
        for pick in picks.values():
            yield mapped(self.tree, partial(_taken, index=pick[part]))


def _taken(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor[index.to(tensor.device)]


def _in_memory(data: Any) -> bool:
    return isinstance(data, Tensor | np.ndarray | tuple | Mapping | TensorDataset)


def _has_samples(data: Any) -> bool:
    known = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return known and not isinstance(data, type | str | bytes | DataLoader)


def gives_batches(data: Any) -> bool:
    """Whether data give batches of their own, not samples."""
    return not (_in_memory(data) or _has_samples(data))


def read_given(given: Given, source: DataSource) -> TrainTest[Split | Stream]:
    """Returns what a user gave as training and test data.

    Raises:
        TypeError: It is of no kind that can be read.
        ValueError: Tensors have different lengths.
    """
    size = given.batch_size or DEFAULT_BATCH

    def read(data: Any, name: str) -> Split | Stream:
        if _in_memory(data):
            return _tree(data, name, size)
        if _has_samples(data):
            workers = source.workers or 0
            return Samples(data, test_batch=size, workers=workers, collate=given.collate)
        return _stream(data, name)

    return TrainTest(read(given.train, "train"), read(given.test, "test"))


def _tree(data: Any, name: str, test_batch: int) -> TreeSplit:
    tree = _as_tensors(data.tensors if isinstance(data, TensorDataset) else data)
    lengths = sorted({len(one) if one.dim() else 0 for one in tensors(tree)})
    if not lengths:
        message = f"{name} is {named(data)} that holds no tensor"
        raise TypeError(f"{message}; make tensors of its numbers, as torch.tensor does")
    if len(lengths) != 1:
        found = " and ".join(map(str, lengths))
        message = f"{name} has tensors of {found} samples"
        raise ValueError(f"{message}; all must have the same number, along their first dimension")
    return TreeSplit(tree, lengths[0], test_batch)


def _as_tensors(tree: Any) -> Any:
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if isinstance(tree, Mapping):
        return {key: _as_tensors(value) for key, value in tree.items()}
    return tuple(map(_as_tensors, tree)) if isinstance(tree, tuple) else tree


def _stream(data: Any, name: str) -> Stream:
    if isinstance(data, Iterator):
        message = f"{name} is {named(data)}, which can be read only once"
        raise TypeError(f"{message}; give the function that makes it, without calling it")
    if isinstance(data, str | bytes):
        raise TypeError(
            f"{name} is {data!r}, which is text; read it, and give tensors or a data set"
        )
    if (
        isinstance(data, Dataset)
        and not isinstance(data, Iterable)
        and not hasattr(data, "__len__")
    ):
        raise TypeError(f"{name} is {named(data)} without a length; give it a __len__")
    if not isinstance(data, Iterable) and not callable(data):
        message = f"{name} is {named(data)}"
        allowed = "tensors, a data set, a DataLoader, or a function that returns batches"
        raise TypeError(f"{message}; it must be {allowed}")
    return Stream(data)
