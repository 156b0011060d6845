"""The choice of the split size (eq. 11, 12): the paper's own numbers, and measured ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import convnet, data, mean_half_square, mlp, train
from oracle import blocks_only
from torch_thor import THOR, Preconditioner
from torch_thor.curvature.split import SplitCurves, candidate_sizes, information_loss
from torch_thor.layers import Geometry
from torch_thor.linalg import timing
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
KEPT = (0.0741, 0.0741, 0.0926, 0.1667, 0.2407, 0.4259, 0.5926, 0.8519, 0.8889)
SPEED = (1.0, 0.6014, 0.4276, 0.2939, 0.1669, 0.0664, 0.0250, 0.0095, 0.0036)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    return tmp_path


def test_table_1_of_the_paper_chooses_128() -> None:
    curves = SplitCurves(SIZES, KEPT, SPEED)
    size, height = curves.crossing()
    assert size == pytest.approx(106, abs=3)
    assert height == pytest.approx(0.21, abs=0.01)
    assert curves.choice() == 128


@pytest.mark.parametrize(
    ("kept", "speed", "choice"),
    [((1.0, 1.0), (1.0, 0.5), 1), ((0.0, 0.1), (1.0, 0.5), 64), ((0.0, 1.0), (1.0, 0.0), 64)],
    ids=["nothing is ever lost", "too much is lost everywhere", "in the middle: the next one up"],
)
def test_curves_at_their_ends(
    kept: tuple[float, ...], speed: tuple[float, ...], choice: int
) -> None:
    curves = SplitCurves((1, 64), kept, speed)
    if kept == (0.0, 1.0):
        assert curves.crossing() == pytest.approx((32.5, 0.5))
    else:
        assert curves.choice() == choice


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 4))
def test_information_loss_is_eq_11(size: int, block: int, rows: int) -> None:
    table = torch.randn(1, rows, size, dtype=torch.float64)
    A = table[0].T @ table[0]
    cut = blocks_only(A, block)
    ratio = torch.linalg.eigvalsh(cut @ cut.T)[-1] / torch.linalg.eigvalsh(A @ A.T)[-1]
    found = information_loss(table, min(block, size))
    # eq. 11 is compared with 1 %, so half of that is what an estimate may be wrong by
    assert found.item() == pytest.approx(1 - ratio.sqrt().item(), abs=0.005)
    assert 0.0 <= found.item() <= 1.0


def test_no_information_is_lost_by_one_block_and_none_in_zeros() -> None:
    table = torch.randn(2, 5, 6)
    assert information_loss(table, 6).tolist() == [0.0, 0.0]
    assert information_loss(torch.zeros(1, 3, 4), 2).tolist() == [0.0]


def test_candidates_are_multiples_of_the_taps_up_to_the_widest_factor() -> None:
    convolution = Geometry(1, 512, 4608, bias=False, taps=9)
    head = Geometry(1, 10, 512, bias=True)
    sizes = candidate_sizes([convolution, convolution, head])
    assert sizes == (1, 9, 18, 36, 72, 144, 288, 576, 1152, 2304, 4608)
    assert (
        candidate_sizes([head])
        == (1, 16, 32, 64, 128, 256, 512, 1024)[: len(candidate_sizes([head]))]
    )


@pytest.mark.parametrize("build", [mlp, convnet])
def test_auto_measures_once_and_then_reads_the_cache(
    build: type, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (5,) if build is mlp else (2, 6, 6)
    model = build()
    optimizer = THOR(model, norm_control="graft", split="auto")
    train(model, optimizer, [data(8, *shape)])
    chosen = {stack.a.partition.block for stack in optimizer.engine.stacks}
    stored = list(own_cache.rglob("*.json"))
    assert len(stored) == 1
    assert json.loads(stored[0].read_text())

    def forbidden(*_: object, **__: object) -> float:
        raise AssertionError("measured again although the cache knows")

    monkeypatch.setattr(timing, "measure_inversion", forbidden)
    model = build()
    again = THOR(model, norm_control="graft", split="auto")
    train(model, again, [data(8, *shape)])
    assert chosen == {stack.a.partition.block for stack in again.engine.stacks}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 99}', "\x00"])
def test_a_broken_cache_is_replaced_and_never_fatal(own_cache: Path, content: str) -> None:
    timing.cache_file().write_text(content)
    model = mlp()
    train(model, THOR(model, norm_control="graft", split="auto"), [data(8)])
    assert json.loads(timing.cache_file().read_text())["times"]
    assert list(own_cache.glob("*.tmp*")) == []


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path / "file" / "below"))
    model = mlp()
    train(model, THOR(model, norm_control="graft", split="auto"), [data(8)])


@pytest.mark.parametrize("split", [1, 3, 1000, None])
def test_a_split_by_hand_is_taken_as_it_is(split: int | None) -> None:
    model = mlp()
    preconditioner = Preconditioner(model, split=split)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    for stack in preconditioner.engine.stacks:
        width = stack.geometry.columns
        assert stack.a.partition == Partition.of(width, split)


@pytest.mark.parametrize("sizes", [(), (4, 2)])
def test_impossible_curves_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^Invalid sizes="):
        SplitCurves(sizes, (0.1,) * len(sizes), (0.1,) * len(sizes))
