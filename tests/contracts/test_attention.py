"""Promise: attention layers, whose fused kernels bypass modules, train and are accounted for."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from helpers import weights
from torch_thor import THOR


class Attention(nn.Module):
    """One block: attention, then a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.feed(x + mixed).mean(1)


def test_multihead_attention_trains_and_stands_in_coverage() -> None:
    """Case 3."""
    model = Attention()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    inputs, targets = torch.randn(8, 5, 8), torch.randn(8, 3)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            optimizer.zero_grad()
            ((model(inputs) - targets) ** 2).mean().backward()
            optimizer.step()
    for name, old, new in zip(dict(model.named_parameters()), before, weights(model), strict=True):
        assert not torch.equal(old, new), f"{name} does not train"
    report = {entry.name: entry for entry in optimizer.coverage()}
    assert report.keys() == dict(model.named_parameters()).keys()
    for name, entry in report.items():
        if name.startswith("attention"):
            assert entry.reason, f"{name} has no reason"


def test_a_stock_transformer_layer_trains() -> None:
    """Case 3: the whole encoder layer, norms and dropout included."""
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True),
        nn.Flatten(),
        nn.Linear(40, 3),
    )
    optimizer = THOR(model, norm_control="graft", lr=0.01)
    inputs, targets = torch.randn(8, 5, 8), torch.randn(8, 3)
    before = weights(model)
    for _ in range(3):
        optimizer.zero_grad()
        ((model(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
    for name, old, new in zip(dict(model.named_parameters()), before, weights(model), strict=True):
        assert not torch.equal(old, new), f"{name} does not train"
        assert new.isfinite().all()


@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 5}], ids=["packed", "separate"])
def test_calls_stay_where_the_model_changes_before_the_step(widths: dict[str, int]) -> None:
    """Case 49: an attention is the layer that it was, as any other is."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, batch_first=True, **widths)})
    optimizer = THOR(model, norm_control="graft", interval=1)
    inputs = (torch.randn(3, 5, widths.get(side, 4)) for side in ("embed", "kdim", "vdim"))
    model["attention"](*inputs)[0].square().sum().backward()
    model["frozen"] = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    optimizer.step()
    assert set(optimizer.factor_norms()) == {layer.name for layer in optimizer.engine.layers}


@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 5}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_is_no_error(widths: dict[str, int], *, batch_first: bool) -> None:
    """Steps with statistics see it; torch takes it."""
    model = nn.MultiheadAttention(8, 2, batch_first=batch_first, **widths)
    optimizer = THOR(model, norm_control="graft", lr=0.1, interval=1)
    for samples in (0, 3, 0, 3):
        before = weights(model)
        shape = (samples, 5) if batch_first else (5, samples)
        query, key, value = (
            torch.randn(*shape, width)
            for width in (8, widths.get("kdim", 8), widths.get("vdim", 8))
        )
        optimizer.zero_grad()
        model(query, key, value)[0].square().sum().backward()
        optimizer.step()
        moved = any(not torch.equal(*pair) for pair in zip(before, weights(model), strict=True))
        assert moved or not samples
