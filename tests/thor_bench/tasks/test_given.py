"""Whatever a user gives as data: batches depend on seed and epoch, and go on anywhere."""

from __future__ import annotations

import random
from collections import UserDict, namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from thor_bench.records.config import DataSource
from thor_bench.tasks import Task
from thor_bench.tasks.batches import Data, Share
from thor_bench.tasks.trees import mapped, placed, rows, samples, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

INPUTS, LABELS = torch.arange(48.0).reshape(24, 2), torch.arange(24)
CPU = torch.device("cpu")


class Shaken(Dataset[Any]):
    """Samples with noise from each generator that people draw from."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.rand(()).item() + random.random() + np.random.rand()  # noqa: NPY002, S311
        return {"input_ids": INPUTS[index] + noise, "labels": index}


def drawn() -> Iterator[torch.Tensor]:
    while True:
        yield torch.rand(4, 2)


KINDS: dict[str, Any] = {
    "tensor": INPUTS,
    "tuple": (INPUTS, LABELS),
    "mapping": {"x": INPUTS, "y": {"label": LABELS}},
    "array": (INPUTS.numpy(), LABELS.numpy()),
    "tensor data set": TensorDataset(INPUTS, LABELS),
    "list": list(zip(INPUTS, LABELS, strict=True)),
    "data set": Shaken(),
    "loader": DataLoader(Shaken(), batch_size=4, shuffle=True),
    "loader with its generator": DataLoader(
        Shaken(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "loader with workers": DataLoader(Shaken(), batch_size=4, shuffle=True, num_workers=1),
    "function": drawn,
}


def given(kind: str, seed: int = 0, share: Share = Share()) -> Data:  # noqa: B008 - it is frozen
    task = Task(
        model=lambda: torch.nn.Linear(2, 2),
        loss=lambda model, batch: model(batch),
        train=KINDS[kind],
        test=(INPUTS, LABELS),
        batch_size=4,
        steps_per_epoch=6 if kind == "function" else None,
    )
    splits = task.data(DataSource())
    size, steps = task.batch_size, task.steps_per_epoch
    return Data(splits, batch_size=size, steps_per_epoch=steps, seed=seed, share=share)


def numbers(batches: Iterator[Any]) -> list[list[float]]:
    return [[float(x) for one in tensors(batch) for x in one.flatten()] for batch in batches]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_depend_on_seed_and_epoch_and_go_on_anywhere(kind: str) -> None:
    before = torch.get_rng_state(), random.getstate()
    data = given(kind)
    whole = numbers(data.batches(1))
    assert data.steps_per_epoch == len(whole) == 6
    assert numbers(given(kind).batches(1)) == whole
    assert numbers(given(kind).batches(1, first=2)) == whole[2:]
    assert numbers(data.batches(2)) != whole
    assert numbers(given(kind, seed=1).batches(1)) != whole
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("kind", ["mapping", "data set", "loader", "function"])
def test_the_shares_of_the_ranks_make_up_the_batch(kind: str) -> None:
    shares = [list(given(kind, share=Share(rank, 2)).batches(0)) for rank in range(2)]
    for whole, one, other in zip(given(kind).batches(0), *shares, strict=True):
        assert samples(one) == samples(other) == 2
        parts = zip(tensors(whole), tensors(one), tensors(other), strict=True)
        assert all(torch.equal(torch.cat([a, b]), both) for both, a, b in parts)


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    data = given("loader", share=Share(0, 3))
    with pytest.raises(ValueError, match=r"a batch=4 must be a multiple of 3 \(ranks\)"):
        next(data.batches(0))


def test_all_test_samples_come_once_and_in_order() -> None:
    for ranks in (1, 2):
        parts = [given("tuple", share=Share(rank, ranks)).test_batches() for rank in range(ranks)]
        found = [label for part in parts for _, labels in part for label in labels.tolist()]
        assert sorted(found) == LABELS.tolist()


def test_samples_are_found_in_any_structure() -> None:
    Pair = namedtuple("Pair", "scale inputs")  # noqa: PYI024 - what people have
    encoding = UserDict({"ids": torch.ones(3, 5), "mask": [torch.ones(3)], "note": "text"})
    pair = Pair(torch.tensor(2.0), encoding)
    assert samples(pair) == 3
    half = rows(pair, slice(2))
    assert isinstance(half, Pair)
    assert isinstance(half.inputs, UserDict)
    assert (half.inputs["ids"].shape, half.inputs["mask"][0].shape) == ((2, 5), (2,))
    assert (half.scale, half.inputs["note"]) == (torch.tensor(2.0), "text")
    with pytest.raises(ValueError, match="no tensor has a first dimension"):
        samples({"note": "text"})


def test_what_can_move_moves_itself() -> None:
    class Graph:
        def to(self, device: torch.device) -> str:
            return f"on {device}"

    assert placed(Graph(), CPU, memory_format=torch.channels_last, wait=True) == "on cpu"
    images = {"pixels": torch.ones(2, 3, 4, 4), "label": torch.ones(2)}
    moved = placed(images, CPU, memory_format=torch.channels_last, wait=True)
    assert moved["pixels"].is_contiguous(memory_format=torch.channels_last)
    assert mapped(3, torch.neg) == 3
