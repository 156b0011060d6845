"""Which adapter a layer type has, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreign import Conv1D
from helpers import data, mean_half_square
from peek import factors_of
from torch_thor import (
    THOR,
    Geometry,
    InvalidOptionError,
    LayerAdapter,
    RowPlan,
    Treatment,
    register_adapter,
)
from torch_thor.layers import adapter_for, registry


@pytest.fixture(autouse=True)
def registry_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))


class Halved(nn.Linear):
    """Uses its weight in its own way: y = W (x / 2) + b."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return super().forward(input / 2)


class HalvedAdapter(LayerAdapter[Halved]):
    """Rows x / 2."""

    def geometry(self, module: Halved, *, bias: bool) -> Geometry:
        return Geometry(1, module.out_features, module.in_features, bias)

    def call_shape(self, module: Halved, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        return len(inputs), 1

    def input_rows(self, module: Halved, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        rows = plan.take_inputs(inputs.unsqueeze(1) / 2)
        return nn.functional.pad(rows, (0, int(bias)), value=1.0)[None]

    def output_rows(self, module: Halved, gradient: Tensor, plan: RowPlan) -> Tensor:
        return plan.take_gradients(gradient.unsqueeze(1))[None]


def test_a_layer_of_the_users_own_joins_by_its_adapter() -> None:
    """Case 9: unknown before, preconditioned with the right rows after."""
    model = Halved(5, 3)
    assert THOR(model, norm_control="graft").coverage().share(Treatment.PRECONDITIONED) == 0
    register_adapter(Halved, HalvedAdapter())
    optimizer = THOR(model, norm_control="graft", split=None)
    assert optimizer.coverage().share(Treatment.PRECONDITIONED) == 1
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    optimizer.step()
    rows = torch.cat([inputs / 2, torch.ones(8, 1)], dim=1)
    ((A, _),) = factors_of(optimizer)
    torch.testing.assert_close(A, rows.T @ rows / 8)


def test_an_adapter_that_is_registered_replaces_the_one_that_was_there() -> None:
    class Never(HalvedAdapter):
        def refusal(self, module: Halved) -> str:
            return "never"

    register_adapter(Halved, HalvedAdapter())
    register_adapter(Halved, Never())
    (entry, *_) = THOR(Halved(2, 2), norm_control="graft").coverage()
    assert entry.reason == "never"


def test_a_subclass_may_be_declared_to_be_like_its_parent() -> None:
    class Named(nn.Linear):
        pass

    adapter = adapter_for(nn.Linear(1, 1))
    assert adapter is not None
    assert adapter_for(Named(2, 2)) is None
    register_adapter(Named, adapter)
    assert adapter_for(Named(2, 2)) is adapter


@pytest.mark.parametrize(
    ("module_type", "adapter", "named"),
    [
        (int, HalvedAdapter(), "module_type"),
        (nn.Linear(1, 1), HalvedAdapter(), "module_type"),
        (nn.Linear, HalvedAdapter, "adapter"),
        (nn.Linear, None, "adapter"),
    ],
)
def test_wrong_registrations_are_refused(module_type: Any, adapter: Any, named: str) -> None:
    with pytest.raises(InvalidOptionError, match=named):
        register_adapter(module_type, adapter)


def test_a_class_of_another_library_is_known_by_its_full_name_only() -> None:
    """Case 9."""

    class Impostor(nn.Module):
        pass

    Impostor.__qualname__ = "Conv1D"
    assert adapter_for(Conv1D(2, 2)) is not None
    assert adapter_for(Impostor()) is None


@pytest.fixture
def reasons() -> dict[str, str]:
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(2, 2),
            "gru": nn.GRU(2, 2),
            "bag": nn.EmbeddingBag(3, 2),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
            "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            "mixed": nn.Bilinear(2, 2, 2),
            "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        }
    )
    return {entry.name: entry.reason for entry in THOR(model, norm_control="graft").coverage()}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lstm.weight_ih_l0", ("recurrent", "LSTM")),
        ("gru.bias_hh_l0", ("recurrent", "GRU")),
        ("bag.weight", ("bag", "EmbeddingBag")),
        ("normed.parametrizations.weight.original0", ("parametrized",)),
        ("normed.parametrizations.weight.original1", ("Kronecker", "makes")),
        ("spectral.bias", ("parametrized",)),
        ("spectral.parametrizations.weight.original", ("parametrized",)),
        ("mixed.weight", ("Bilinear",)),
        ("attention.bias_k", ("MultiheadAttention",)),
        ("attention.in_proj_bias", ("Kronecker",)),
        ("attention.k_proj_weight", ("Kronecker",)),
        ("attention.out_proj.bias", ("Kronecker",)),
    ],
)
def test_reasons_say_what_stands_in_the_way(
    reasons: dict[str, str], name: str, words: tuple[str, ...]
) -> None:
    """Case 3, 14."""
    assert all(word in reasons[name] for word in words), reasons[name]


def test_parts_of_an_attention_layer_are_excluded_by_name() -> None:
    """Case 3."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    report = {
        entry.name: entry
        for entry in THOR(model, norm_control="graft", exclude=("attention.out_proj",)).coverage()
    }
    assert report["attention.in_proj_weight"].treatment is Treatment.PRECONDITIONED
    for name in ("weight", "bias"):
        entry = report[f"attention.out_proj.{name}"]
        assert (entry.treatment, entry.reason) == (Treatment.BASE, "excluded")
    (only,) = THOR(model, norm_control="graft", exclude=("*.in_proj",)).engine.layers
    assert only.name == "attention.out_proj"
    everything = THOR(model, norm_control="graft", exclude=(nn.MultiheadAttention,)).coverage()
    assert everything.share(Treatment.PRECONDITIONED) == 0


def test_a_frozen_projection_leaves_the_other_one() -> None:
    """Case 3, 10."""
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    model.in_proj_weight.requires_grad_(False)
    model.out_proj.bias.requires_grad_(False)
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    assert [layer.name for layer in optimizer.engine.layers] == ["out_proj"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(3, 2, 4)
    model(x, x, x)[0].square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"in_proj_bias", "out_proj.weight"}
    # thawed later, it joins
    model.in_proj_weight.requires_grad_()
    optimizer.step()
    assert {layer.name for layer in optimizer.engine.layers} == {"in_proj", "out_proj"}
