"""Promise: a layer that finds no memory is named, with the way out, before it asks (case 61)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import data, mean_half_square, mlp
from ranks import on_ranks
from torch_thor import EKFAC, KFAC, THOR, CurvatureWarning, InvalidOptionError, Preconditioner
from torch_thor.curvature import memory, split
from torch_thor.linalg import timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how much memory there seems to be."""

    def claim(size: float) -> None:
        for module in (timing, memory, split):
            monkeypatch.setattr(module, "free_memory", lambda _: int(size))

    return claim


def wide() -> nn.Sequential:
    """4 x 20001: whole factors and inverses take 3.2 GB, blocks of 72 take 12 MB."""
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(20_000, 4))


BUILDS: dict[str, Callable[[nn.Module], object]] = {
    "thor": lambda model: THOR(model, norm_control="graft", lr=0.1, split=None),
    "kfac": lambda model: KFAC(model, lr=0.1),
    "ekfac": lambda model: EKFAC(model, lr=0.1),
}


@pytest.mark.parametrize("name", BUILDS)
def test_more_than_there_is_is_an_error_when_the_optimizer_is_built(
    name: str, free: Callable[[float], None]
) -> None:
    free(3e9)
    model = wide()
    with pytest.raises(InvalidOptionError) as error:
        BUILDS[name](model)
    said, device = str(error.value), next(model.parameters()).device
    for words in ("split=None", "'1' (4x20001", "take 3.2 GB", f"3 GB are free on {device}"):
        assert words in said
    assert "Either cut it: THOR(split=72) takes" in said
    assert "or pass exclude=('1',)" in said


def test_layers_that_are_small_alone_may_be_too_many(free: Callable[[float], None]) -> None:
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(9)))
    free(1e6)
    with pytest.raises(InvalidOptionError, match="4 MB for all layers"):
        THOR(model, norm_control="graft", split=None)


def test_much_of_what_there_is_is_a_warning_at_the_line_that_builds(
    free: Callable[[float], None],
) -> None:
    free(10e9)
    with pytest.warns(CurvatureWarning, match=r"'1' \(4x20001.* take 3.2 GB") as caught:
        KFAC(wide(), lr=0.1)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("ways", [{"split": 72}, {"split": None, "exclude": ("1",)}])
def test_the_ways_out_are_ways_out(ways: dict[str, Any], free: Callable[[float], None]) -> None:
    free(3e9)
    THOR(wide(), norm_control="graft", lr=0.1, **ways)


def test_layers_that_others_train_need_no_room(free: Callable[[float], None]) -> None:
    model = wide()
    free(3e9)
    KFAC(model, model[0].parameters(), lr=0.1)


def test_plenty_is_no_word(free: Callable[[float], None]) -> None:
    free(1e12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KFAC(wide(), lr=0.1)


def test_a_preconditioner_asks_before_it_allocates(free: Callable[[float], None]) -> None:
    model = mlp(60)
    preconditioner = Preconditioner(model, split=None)
    inputs, targets = data()
    mean_half_square(model(inputs), targets).backward()
    free(1e4)
    with pytest.raises(InvalidOptionError, match="blocks of 6 and 60"):
        preconditioner.step()
    with pytest.raises(InvalidOptionError, match="blocks of 6 and 60"):
        preconditioner.allocate()
    free(1e9)
    preconditioner.step()


@pytest.mark.parametrize("choice", ["auto", "per_layer"])
@pytest.mark.parametrize("size", [3e5, 1e6, 4e6])
def test_measured_splits_time_no_size_that_the_machine_can_not_hold(
    choice: Any, size: float, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: set[int] = set()

    def measure(block: int, *_: object) -> float:
        timed.add(block)
        return 1e-9 * block  # large blocks are cheap, so that they would be taken

    monkeypatch.setattr(timing, "measure_inversion", measure)
    monkeypatch.setattr(timing, "measure_product", measure)
    model = nn.Sequential(nn.Linear(5, 600), nn.Linear(600, 600), nn.Linear(600, 3))
    thor = THOR(model, norm_control="graft", split=choice)
    inputs, targets = data()
    mean_half_square(model(inputs), targets).backward()
    free(size)
    smallest = {1, 16} if choice == "auto" else {72, 128}
    if choice == "per_layer" and size < 2e6:
        with pytest.raises(InvalidOptionError, match="Invalid split='per_layer'"):
            thor.step()
    else:
        thor.step()
        assert thor.memory().factors + thor.memory().inverses <= size
    assert all(4 * 12 * block**2 <= size / 4 for block in timed - smallest)


def too_little_on_one_rank() -> str:
    """Rank 1 has no memory."""
    size = 1e9 if torch.distributed.get_rank() == 0 else 1e3
    memory.free_memory = lambda _: int(size)  # type: ignore[attr-defined,assignment]
    try:
        THOR(mlp(), norm_control="graft", lr=0.1)
    except InvalidOptionError as error:
        return str(error)
    return "no error"


def test_too_little_on_one_rank_is_an_error_on_all() -> None:
    first, second = on_ranks(2, too_little_on_one_rank)
    assert "another one has too little memory" in first
    assert "are free on cpu" in second
