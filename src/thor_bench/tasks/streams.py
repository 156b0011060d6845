"""Data that give batches of their own: loaders, other iterables, functions that return one."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from thor_bench.tasks.data import Batch, random_stream

_END = object()
_WORDS = 625  # of the state of ``random``


def seed_all(number: int) -> None:
    """Seeds what users' code draws from: the generators of torch's CPU, ``random`` and NumPy."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - users' code may draw from it


def random_states() -> Tensor:
    """Returns the states of torch's CPU generator, ``random`` and NumPy as bytes."""
    _, words, gauss = random.getstate()
    state: Any = np.random.get_state()  # noqa: NPY002
    _, keys, place, *rest = state
    numbers = [*words, math.nan if gauss is None else gauss, *keys.tolist(), place, *rest]
    others = torch.tensor(numbers, dtype=torch.float64).view(torch.uint8)
    return torch.cat([torch.get_rng_state(), others])


def restore_random(states: Tensor) -> None:
    """Takes over what ``random_states`` gave; older checkpoints have torch's state alone."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(states[:size].clone())
    if len(states) == size:
        return
    numbers = states[size:].clone().view(torch.float64).tolist()
    words, gauss, rest = numbers[:_WORDS], numbers[_WORDS], numbers[_WORDS + 1 :]
    version = random.getstate()[0]
    drawn = None if math.isnan(gauss) else gauss
    random.setstate((version, tuple(map(int, words)), drawn))
    keys, (place, has_gauss, cached) = np.array(rest[:-3], dtype=np.uint32), rest[-3:]
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))  # noqa: NPY002


class Draws:
    """Generators of its own: what is drawn while it is entered moves nobody else's.

    Args:
        number: Their seed.
    """

    def __init__(self, number: int) -> None:
        outside = self._states()
        seed_all(number)
        self._inside = self._states()
        self._set(outside)

    def __enter__(self) -> Self:
        self._outside = self._states()
        self._set(self._inside)
        return self

    def __exit__(self, *_error: object) -> None:
        self._inside = self._states()
        self._set(self._outside)

    @staticmethod
    def _states() -> tuple[Any, ...]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002

    @staticmethod
    def _set(states: tuple[Any, ...]) -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


@dataclass(frozen=True)
class Stream:
    """Batches as an iterable gives them, or a function that returns one.

    Attributes:
        source: The iterable, or the function.
    """

    source: Iterable[Batch] | Callable[[], Iterable[Batch]]

    @property
    def length(self) -> int | None:
        """Number of batches, where it is known."""
        try:
            return len(self.source)  # type: ignore[arg-type] # not all have one
        except TypeError:
            return None

    def read(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch, the same ones for the same numbers.

        What the source draws from the global generators depends on the numbers alone.
        """
        number = int(torch.randint(2**62, (), generator=random_stream(seed, epoch)))
        draws = Draws(number)
        with draws:
            source = self.source() if callable(self.source) else self.source
            if isinstance(source, DataLoader):
                _seed_loader(source, number, epoch)
            batches = iter(source)
        while True:
            with draws:
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


def _seed_loader(loader: DataLoader[Any], number: int, epoch: int) -> None:
    """Seeds the generators of a loader and of its sampler, which go on from epoch to epoch."""
    for owner in (loader, loader.sampler):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
