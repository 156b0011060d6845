"""Singular values made alike: against the singular value decomposition, and by their cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from torch_thor.directions import orthogonal

SHAPES = [(2, 1, 3, 4), (1, 2, 5, 5), (2, 1, 5, 3), (1, 1, 4, 30), (1, 1, 30, 4)]


def orthogonalize(matrices: Tensor, iterations: int, tile: int | None = None) -> Tensor:
    """One stack by itself."""
    (found,) = orthogonal.orthogonalize([matrices], iterations, [tile])
    return found


def expected(matrix: Tensor, iterations: int) -> Tensor:
    """The polynomials applied to the singular values."""
    U, values, V = torch.linalg.svd(matrix, full_matrices=False)
    first = max(6 - iterations, 0)
    values = values / values.square().sum().sqrt() * orthogonal._TOPS[first]
    quintics = [orthogonal._SAFE[0]] * max(iterations - 6, 0)
    for a, b, c in [*quintics, *orthogonal._SAFE[first:]]:
        values = a * values + b * values**3 + c * values**5
    return U @ torch.diag(values) @ V


def with_values(values: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with these singular values, as ``[1, 1, rows, columns]``."""
    drawn = torch.randn(1, 1, rows, columns, dtype=torch.float64)
    U, _, V = torch.linalg.svd(drawn, full_matrices=False)
    return (U @ torch.diag(values.double()) @ V).float()


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_polynomials_map_singular_values_and_leave_singular_vectors(
    shape: tuple[int, ...], iterations: int
) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    found = orthogonalize(matrices, iterations).flatten(0, 1)
    for one, matrix in zip(found, matrices.flatten(0, 1), strict=True):
        torch.testing.assert_close(one, expected(matrix, iterations), rtol=1e-6, atol=1e-8)


def test_the_polynomials_are_the_closest_to_one() -> None:
    """Each meets 1 ± e four times on its interval, and that is the next one's."""
    low, high = 0.73, 1.27
    for (a, b, c), top in zip(
        reversed(orthogonal._QUINTICS), reversed(orthogonal._TOPS), strict=True
    ):
        x = torch.linspace(2 - top, top, 200_001, dtype=torch.float64)
        values = a * x + b * x**3 + c * x**5
        torch.testing.assert_close(
            [values.min().item(), values.max().item()], [low, high], rtol=1e-3, atol=3e-4
        )
        low, high = 2 - top, top


def muon(values: Tensor) -> Tensor:
    """Five of Muon's steps."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (40, 200), (200, 40)])
def test_four_steps_make_singular_values_as_alike_as_five_of_muons(rows: int, columns: int) -> None:
    values = torch.logspace(0, -2.6, 40)
    values = values / values.norm()
    values = values[values > 0.0026]
    values = torch.cat([values, values.new_full((40 - len(values),), 0.0026)])
    found = torch.linalg.svdvals(orthogonalize(with_values(values, rows, columns), 4).double())
    band = muon(torch.logspace(0, -2.6, 4000, dtype=torch.float64))
    assert float(found.max() / found.min()) <= 1.02 * float(band.max() / band.min())
    assert 0.7 < float(found.min()) < float(found.max()) < 1.3


@pytest.mark.parametrize("iterations", [4, 6, 9])
def test_what_has_no_length_stays_small(iterations: int) -> None:
    """Rank one, in a long matrix: rounding in XXᵀ must not grow."""
    thin = torch.randn(1, 1, 16, 1) * torch.randn(1, 1, 1, 200)
    values = torch.linalg.svdvals(orthogonalize(thin, iterations).double())[0, 0]
    assert 0.7 < float(values[0]) < 1.3
    assert float(values[1]) < 1.3


def test_zeros_stay_zero() -> None:
    for shape in SHAPES:
        assert torch.equal(orthogonalize(torch.zeros(shape), 4), torch.zeros(shape))


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_stacks_of_several_kinds_are_each_made_alike_by_itself(scale: float) -> None:
    """One of them is too small to be squared."""
    stacks = [torch.randn(shape) for shape in SHAPES]
    stacks[1] *= scale
    stacks = [*stacks, *(stack.double() for stack in stacks)]
    found = orthogonal.orthogonalize(stacks, 4, [None] * len(stacks))
    for one, stack in zip(found, stacks, strict=True):
        torch.testing.assert_close(one, orthogonalize(stack, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.cpu  # others multiply in bfloat16
@pytest.mark.parametrize(("rows", "columns", "most"), [(64, 576, 0.45), (64, 64, 0.81)])
def test_cost(rows: int, columns: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five steps that multiply the whole matrix, as Muon's do."""
    monkeypatch.setattr(orthogonal, "multiplies_bfloat16", lambda _: False)
    usual = 5 * (2 * rows**2 * columns + rows**3) * 2
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(1, 1, rows, columns), 4)
    assert counter.get_total_flops() <= most * usual


@pytest.mark.parametrize("iterations", [3, 4])
@pytest.mark.parametrize("shape", [(1, 1, 64, 576), (1, 1, 80, 80), (2, 1, 100, 30)])
def test_bfloat16_keeps_to_the_same_band(
    shape: tuple[int, ...], iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "multiplies_bfloat16", lambda _: True)
    matrices = torch.randn(shape)
    before, after = (
        torch.linalg.svdvals(matrices),
        torch.linalg.svdvals(orthogonalize(matrices, iterations)),
    )
    assert float(after.max()) < 1.35
    assert float(after[before > 0.02 * matrices.norm()].min()) > 0.65


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1.0, 1e30])
def test_no_scale_is_too_small_or_too_large(scale: float) -> None:
    """Momentum of a matrix without a gradient decays to such numbers."""
    matrices = torch.randn(1, 2, 6, 9)
    found = orthogonalize(matrices * scale, 4)
    assert found.isfinite().all()
    torch.testing.assert_close(found, orthogonalize(matrices, 4), rtol=1e-3, atol=1e-3)
    assert not orthogonalize(torch.zeros(1, 1, 3, 4), 4).any()


@pytest.mark.parametrize(
    ("rows", "tile", "sizes"),
    [(8, 4, (4, 4)), (10, 4, (4, 4, 2)), (100, 8, (5,) * 20), (7, 4, (4, 3)), (6, 8, (6,))],
)
@pytest.mark.parametrize("columns", [9, 30])
def test_tiles_of_rows_are_matrices_of_their_own(
    rows: int, columns: int, tile: int, sizes: tuple[int, ...]
) -> None:
    matrices = torch.randn(2, 3, rows, columns, dtype=torch.float64)
    found = orthogonalize(matrices, 4, tile)
    for own, source in zip(found.split(sizes, 2), matrices.split(sizes, 2), strict=True):
        torch.testing.assert_close(own, orthogonalize(source, 4), rtol=1e-6, atol=1e-8)


def test_a_tile_of_more_rows_than_there_are_costs_no_search() -> None:
    """A convolution's batch has millions of rows, and every step cuts anew."""

    class Counted(int):
        asked = 0

        def __mod__(self, other: int) -> int:
            Counted.asked += 1
            return int(self) % other

    assert orthogonal._cut(Counted(64), 64, tile=10_000).block == 64
    assert orthogonal._cut(Counted(64), 64, tile=64).block == 64
    assert Counted.asked <= 1


def test_tiles_of_half_precision_keep_to_the_band(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are too small for a CPU's products in bfloat16, and go in float32."""
    monkeypatch.setattr(orthogonal, "multiplies_bfloat16", lambda _: True)
    matrices = torch.randn(1, 1, 128, 300).bfloat16()
    found = orthogonalize(matrices, 4, 64)
    assert found.dtype == torch.bfloat16
    values = torch.linalg.svdvals(found.double().view(2, 64, 300))
    assert 0.65 < float(values.min()) < float(values.max()) < 1.35


@pytest.mark.cpu
def test_tiles_cost_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "multiplies_bfloat16", lambda _: False)
    flops = []
    for tile in (None, 64):
        with FlopCounterMode(display=False) as counter:
            orthogonalize(torch.randn(1, 1, 512, 512), 4, tile)
        flops.append(counter.get_total_flops())
    assert flops[1] < 0.12 * flops[0]


def test_tiles_are_not_longer_than_wide() -> None:
    """They would cost more than all rows together."""
    matrices = torch.randn(1, 1, 512, 128)
    assert torch.equal(orthogonalize(matrices, 4, 256), orthogonalize(matrices, 4))
