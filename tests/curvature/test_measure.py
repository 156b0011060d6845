"""The criterion beside the paper's: log-det divergence per microsecond, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import convnet, data, mean_half_square
from oracle import blocks_only
from torch_thor import LayerSplit, measure_split
from torch_thor.curvature.split import log_det_divergences

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path))
    return tmp_path


@given(st.integers(1, 7), st.integers(1, 8), st.integers(1, 9))
def test_log_det_divergence_is_its_definition(size: int, block: int, rows: int) -> None:
    table = torch.randn(1, rows, size, dtype=torch.float64)
    A = table[0].T @ table[0]
    shift = 0.1 * A.trace() / size * torch.eye(size, dtype=torch.float64)
    whole, cut = A + shift, blocks_only(A, block) + shift
    product = torch.linalg.solve(cut, whole)
    expected = product.trace() - torch.linalg.slogdet(product).logabsdet - size
    (found,) = log_det_divergences(table, [min(block, size)], 0.1)
    assert found == pytest.approx(float(expected), abs=1e-8)


def test_measure_split_tells_every_layer_and_leaves_the_model_alone(own_cache: Path) -> None:
    model = convnet()
    inputs, targets = data(8, 2, 6, 6)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    found = measure_split(model, lambda: mean_half_square(model(inputs), targets).backward())
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert len(list(own_cache.rglob("*.json"))) == 1
    assert found.curves.choice() in found.sizes
    assert found.counts[-1] == len(found.layers)
    for layer in found.layers:
        assert layer.loss[-1] == layer.divergence[-1] == 0.0
        assert all(
            a >= b - 1e-9 for a, b in zip(layer.divergence, layer.divergence[1:], strict=False)
        )
        assert layer.choice(found.sizes) in found.sizes


def test_measure_split_of_a_model_without_layers_is_refused() -> None:
    model = torch.nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="a layer to split"):
        measure_split(model, lambda: model(torch.randn(4, 3)).sum().backward())


def test_the_criterion_by_divergence_weighs_information_against_time() -> None:
    layer = LayerSplit("a", 64, (0.9, 0.1, 0.0), (10.0, 1.0, 0.0), (1.0, 2.0, 10.0))
    assert layer.choice((1, 8, 64)) == 8  # 0.9 - 0.2; the others 0 - 0.1 and 1 - 1
    whole = LayerSplit("b", 64, (0.9, 0.9, 0.0), (10.0, 9.9, 0.0), (10.0, 9.0, 1.0))
    assert whole.choice((1, 8, 64)) == 64
    diagonal = LayerSplit("c", 64, (0.0,) * 3, (0.0,) * 3, (1.0, 2.0, 10.0))
    assert diagonal.choice((1, 8, 64)) == 1
