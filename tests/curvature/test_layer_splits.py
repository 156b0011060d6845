"""Block sizes chosen geometry by geometry: the criterion, the budget, and what follows from it."""

from __future__ import annotations

import io
import math
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from helpers import assert_same_weights, data, train
from oracle import blocks_only
from torch_thor import THOR, InvalidOptionError, Preconditioner
from torch_thor.curvature import layer_splits
from torch_thor.curvature.layer_splits import BlockTimes, _gains, affordable_pairs
from torch_thor.curvature.split import candidate_sizes, held_entries
from torch_thor.curvature.stacks import SplitRule
from torch_thor.layers import Geometry
from torch_thor.linalg import timing
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


SIZES = (72, 128, 256, 512, 1024)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Inverting s rows takes s³ ns and products s ns; returns which sizes were asked for."""
    asked: list[tuple[int, ...]] = []

    def inversions(sizes: Sequence[int], *_: object) -> tuple[float, ...]:
        asked.append(tuple(sizes))
        return tuple(1e-9 * size**3 for size in sizes)

    def products(sizes: Sequence[int], _: object) -> tuple[float, ...]:
        return tuple(1e-9 * size for size in sizes)

    monkeypatch.setattr(layer_splits, "inversion_times", inversions)
    monkeypatch.setattr(layer_splits, "product_times", products)
    return asked


def rows_of_blocks(width: int, block: int, rows: int) -> Tensor:
    """Rows whose covariance is full inside each block and exactly 0 between them."""
    table = torch.zeros(1, rows, width, dtype=torch.float64)
    for number, start in enumerate(range(0, width, block)):
        shape = (len(range(number, rows, width // block)), block)
        mixed = torch.randn(shape, dtype=torch.float64) @ torch.randn(block, block).double()
        table[0, number :: width // block, start : start + block] = mixed
    return table


def correlated_rows(width: int, rows: int) -> Tensor:
    """Rows of few directions that all columns share."""
    directions = torch.randn(8, width, dtype=torch.float64)
    return (torch.randn(rows, 8, dtype=torch.float64) @ directions)[None]


def silent(rows: int, outputs: int) -> Tensor:
    """Gradients that are 0: G says nothing, so that A alone decides."""
    return torch.zeros(1, rows, outputs, dtype=torch.float64)


def layer_with(inputs: int, outputs: int, a: Tensor, g: Tensor) -> tuple[nn.Linear, Preconditioner]:
    """A linear layer that has seen rows ``[1, r, inputs]`` and gradients ``[1, r, outputs]``."""
    layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    preconditioner = Preconditioner(layer, split="per_layer")
    (layer(a[0]) * g[0]).sum().backward()
    return layer, preconditioner


def blocks_after(preconditioner: Preconditioner) -> tuple[int, int]:
    preconditioner.step()
    (stack,) = preconditioner.engine.stacks
    return stack.a.partition.block, stack.g.partition.block


def divergence(table: Tensor, block: int) -> float:
    """The definition, by dense matrices: log det of the cut factor − log det of the whole one."""
    A = table[0].T @ table[0]
    shift = 3e-4 * A.trace() / len(A) * torch.eye(len(A), dtype=torch.float64)
    parts = [torch.linalg.slogdet(m + shift).logabsdet for m in (blocks_only(A, block), A)]
    return float(parts[0] - parts[1])


def expected_gains(
    table: Tensor, sizes: Sequence[int], entries: int, largest: int
) -> dict[int, float]:
    width = table.shape[-1]
    kept = [
        1 - divergence(table, Partition.of(width, s).block) / divergence(table, 1) for s in sizes
    ]
    seconds = []
    for size in (*sizes, largest):
        s = Partition.of(width, size).block
        seconds.append(1e-9 * (math.ceil(width / s) * s**3 + 20 * s * entries / 2**20))
    shares = [second / max(seconds) for second in seconds]
    return {size: k - share for size, k, share in zip(sizes, kept, shares, strict=False)}


@pytest.mark.parametrize("kind", ["few directions", "noise"])
def test_the_choice_is_the_best_pair_by_the_definition(
    costs: list[tuple[int, ...]], kind: str
) -> None:
    inputs, outputs = 600, 1600
    rows = 150 if kind == "few directions" else 700
    a, g = torch.randn(1, rows, inputs).double(), torch.randn(1, rows, outputs).double()
    if kind == "few directions":
        a, g = correlated_rows(inputs, rows), correlated_rows(outputs, rows)
    _, preconditioner = layer_with(inputs, outputs, a, g)
    found = blocks_after(preconditioner)
    pairs = [
        (s, t)
        for s in (72, 128, 256, 512, 600)
        for t in (72, 128, 256, 512, 1024, 1600)
        if 2 * sum(math.ceil(w / b) * b**2 for w, b in ((600, cut(600, s)), (1600, cut(1600, t))))
        <= 0.5 * inputs * outputs
    ]
    gains_a = expected_gains(a, sorted({s for s, _ in pairs}), inputs * outputs, inputs)
    gains_g = expected_gains(g, sorted({t for _, t in pairs}), inputs * outputs, outputs)
    s, t = max(pairs, key=lambda pair: gains_a[pair[0]] + gains_g[pair[1]])
    assert len(pairs) > 2
    assert found == (cut(600, s), cut(1600, t))
    assert costs == [(72, 128, 256)]


def cut(width: int, split: int) -> int:
    return Partition.of(width, split).block


def test_blocks_that_hold_everything_are_not_exceeded(costs: list[tuple[int, ...]]) -> None:
    a = rows_of_blocks(576, 72, 8 * 90)
    _, preconditioner = layer_with(576, 5760, a, silent(720, 5760))
    assert blocks_after(preconditioner)[0] == 72
    assert costs == [(72, 128, 256, 512, 1024)]


def test_cheap_inversions_of_correlated_rows_leave_a_factor_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flat(sizes: Sequence[int], *_: object) -> tuple[float, ...]:
        # One inversion takes as long as another, so that fewer are faster.
        return tuple(1e-3 for size in sizes)

    monkeypatch.setattr(layer_splits, "inversion_times", flat)
    monkeypatch.setattr(layer_splits, "product_times", lambda sizes, _: (1e-9,) * len(sizes))
    a = correlated_rows(600, 200)
    _, preconditioner = layer_with(600, 6000, a, silent(200, 6000))
    assert blocks_after(preconditioner)[0] == 600


def test_products_of_every_step_are_part_of_the_price(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(sizes: Sequence[int], *_: object) -> tuple[float, ...]:
        return tuple(1e-9 for size in sizes)

    monkeypatch.setattr(layer_splits, "inversion_times", flat)
    monkeypatch.setattr(
        layer_splits, "product_times", lambda sizes, _: tuple(1e-3 * size for size in sizes)
    )
    a = correlated_rows(600, 200)
    _, preconditioner = layer_with(600, 6000, a, silent(200, 6000))
    assert blocks_after(preconditioner)[0] == 67  # nine blocks, as split=72 cuts


@pytest.mark.parametrize(
    ("columns", "outputs"), [(4608, 512), (769, 50257), (2049, 2048), (257, 128), (1153, 64)]
)
def test_the_budget_holds_or_blocks_are_those_of_72(columns: int, outputs: int) -> None:
    geometry = Geometry(1, outputs, columns, bias=False)
    sizes = tuple(size for size in candidate_sizes([geometry]) if size > 72)
    first, *others = affordable_pairs(geometry, (72, *sizes))
    assert first == (min(72, columns), min(72, outputs))
    for pair in others:
        cuts = Partition.of(columns, pair[0]), Partition.of(outputs, pair[1])
        held = sum(2 * part.count * part.block**2 for part in cuts)
        assert held == held_entries(geometry, pair) <= 0.5 * columns * outputs
        assert min(pair) >= min(72, outputs)
    assert (len(others) == 0) == (outputs < 512)


def test_one_hot_inputs_are_diagonal_and_their_width_is_no_matter() -> None:
    geometry = Geometry(1, 256, 30_000, bias=False, one_hot=True)
    assert affordable_pairs(geometry, (72, 144, 288)) == [(1, 72), (1, 144), (1, 256)]


def test_small_layers_stay_whole_and_measure_nothing(costs: list[tuple[int, ...]]) -> None:
    model = nn.Sequential(nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 3))
    optimizer = THOR(model, norm_control="graft", split="per_layer")
    train(model, optimizer, [data(8, 64)])
    cuts = [(s.a.partition.block, s.g.partition.block) for s in optimizer.engine.stacks]
    assert cuts == [(65, 50), (51, 3)]
    assert costs == []


class Mixed(nn.Module):
    """Tokens, a norm, two layers of one geometry, a wide one, and one that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1000, 128)
        self.norm = nn.LayerNorm(128)
        self.twins = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128))
        self.wide = nn.Sequential(nn.Linear(128, 640), nn.Tanh(), nn.Linear(640, 1280))
        self.head = nn.Linear(1280, 3)
        self.idle = nn.Linear(1280, 160)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.twins(self.norm(self.tokens(tokens))).mean(1)
        return self.head(self.wide(hidden).tanh())


def mixed() -> tuple[Mixed, THOR]:
    model = Mixed()
    include = (nn.Embedding, nn.LayerNorm)
    return model, THOR(model, norm_control="graft", split="per_layer", interval=2, include=include)


def test_every_geometry_has_its_own_blocks(costs: list[tuple[int, ...]]) -> None:
    model, optimizer = mixed()
    train(model, optimizer, [(torch.randint(1000, (8, 5)), torch.randn(8, 3)) for _ in range(3)])
    stacks = {s.layers[0].name: s for s in optimizer.engine.stacks}
    cuts = {name: (s.a.partition.block, s.g.partition.block) for name, s in stacks.items()}
    rule = optimizer.engine.store.rule
    assert len(costs) == 1
    assert rule is not None
    assert len(stacks["twins.0"].layers) == 2
    assert cuts["tokens"][0] == 1
    assert cuts["norm"] == (1, 2)
    assert stacks["norm"].geometry not in rule.chosen
    assert cuts["twins.0"] == (65, 64)
    assert cuts["wide.0"] == (65, 64)
    assert cuts["head"] == (cut(1281, 72), 3)
    assert rule(stacks["idle"].geometry) == (72, 72)
    assert rule.chosen[stacks["tokens"].geometry] in [(1, 72), (1, 128)]
    assert rule.chosen[stacks["wide.2"].geometry] in [(72, 72), (128, 72)]
    for name, stack in stacks.items():
        geometry = stack.geometry
        if not (geometry.one_hot or geometry.unit_wise):
            a, g = rule(geometry)
            assert a is not None
            assert g is not None
            assert cuts[name] == (cut(geometry.columns, a), cut(geometry.outputs, g))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_rows_that_say_nothing_take_the_blocks_of_72(
    costs: list[tuple[int, ...]], value: float
) -> None:
    times = BlockTimes(SIZES, tuple(1e-9 * s**3 for s in SIZES), (1e-9,) * len(SIZES))
    table = torch.full((1, 5, 300), value)
    assert _gains([table], [72, 128, 300], 10**6, times) == {72: 0.0, 128: 0.0, 300: 0.0}
    assert costs == []


def test_times_between_and_beyond_the_measured_sizes_follow_power_laws() -> None:
    times = BlockTimes((72, 144, 288), (72**2, 144**2, 288**3 / 144), (1.0, 1.0, 1.0))
    fixed = 20 * 7.0
    for size, inversion in ((36, 36**2), (72, 72**2), (100, 100**2), (288, 288**3 / 144)):
        found = times.between_refreshes(Partition(2 * size, size), 7 * timing.PRODUCT_ENTRIES)
        assert found == pytest.approx(2 * inversion + fixed)
    steep = math.log2(288**3 / 144 / 144**2)
    beyond = times.between_refreshes(Partition(576, 576), 0)
    assert beyond == pytest.approx(288**3 / 144 * 2**steep)


def test_a_run_goes_on_bit_for_bit_with_the_blocks_that_were_chosen(
    costs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [(torch.randint(1000, (8, 5)), torch.randn(8, 3)) for _ in range(6)]
    model, optimizer = mixed()
    train(model, optimizer, batches[:3])
    kept = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), kept)
    train(model, optimizer, batches[3:])

    def forbidden(*_: object) -> None:
        raise AssertionError("measured although the checkpoint knows")

    monkeypatch.setattr(layer_splits, "inversion_times", forbidden)
    resumed, other = mixed()
    kept.seek(0)
    weights, state = torch.load(kept, weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    train(resumed, other, batches[3:])
    assert_same_weights(model, resumed)
    assert len(costs) == 1


def test_measured_times_join_the_inversions_in_the_cache(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.get_default_device()
    inversions = timing.inversion_times((1, 4), device, 1.0)
    products = timing.product_times((4, 8), device)
    assert min(products) > 0
    assert len(list(own_cache.iterdir())) == 1

    def forbidden(*_: object) -> float:
        raise AssertionError("measured again although the cache knows")

    monkeypatch.setattr(timing, "measure_inversion", forbidden)
    monkeypatch.setattr(timing, "measure_product", forbidden)
    assert timing.inversion_times((1, 4), device, 1.0) == inversions
    assert timing.product_times((8, 4), device) == products[::-1]


def test_room_cannot_be_made_before_there_are_statistics() -> None:
    model = nn.Linear(5, 3)
    preconditioner = Preconditioner(model, split="per_layer")
    with pytest.raises(InvalidOptionError, match=r"split='per_layer'.*a number or None"):
        preconditioner.allocate()


def test_a_choice_travels_to_other_ranks() -> None:
    rule = SplitRule(72, {Geometry(1, 500, 300, bias=True): (128, 256)})
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert again(Geometry(1, 500, 300, bias=True)) == (128, 256)
    assert again(Geometry(1, 500, 300, bias=False)) == (72, 72)
