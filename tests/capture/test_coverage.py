"""The report: every parameter once, with its treatment and a reason that tells what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import Scale, convnet, data, mlp, train
from torch_thor import KFAC, THOR, Base, Coverage, Preconditioner, Treatment
from torch_thor.capture.survey import survey


def report_of(model: nn.Module, **options: Any) -> Coverage:
    return THOR(model, **options).coverage()


@pytest.mark.parametrize(
    "model",
    [
        mlp(),
        convnet(),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.LSTM(3, 4, num_layers=2),
        nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), nn.PReLU()),
        nn.Bilinear(2, 3, 4),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_parameter_stands_in_the_report_once_with_shape_and_reason(model: nn.Module) -> None:
    report = report_of(model)
    assert [entry.name for entry in report] == [name for name, _ in model.named_parameters()]
    for entry in report:
        assert entry.shape == tuple(model.get_parameter(entry.name).shape)
        assert entry.reason


def test_treatments_and_shares() -> None:
    model = nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Linear(5, 2))
    model.get_parameter("2.bias").requires_grad_(False)
    report = report_of(model, norm_control="graft")
    treatments = {entry.name: entry.treatment for entry in report}
    assert treatments == {
        "0.weight": Treatment.PRECONDITIONED,
        "0.bias": Treatment.PRECONDITIONED,
        "1.factor": Treatment.BASE,
        "2.weight": Treatment.PRECONDITIONED,
        "2.bias": Treatment.FROZEN,
    }
    total = 20 + 5 + 5 + 10 + 2
    assert report.share(Treatment.PRECONDITIONED) == pytest.approx(35 / total)
    assert sum(report.share(treatment) for treatment in Treatment) == pytest.approx(1)


def test_the_table_names_everything_and_fits_its_columns() -> None:
    text = str(report_of(convnet(), exclude=(nn.Linear,)))
    lines = text.splitlines()
    for word in ("0.weight", "4x2x3x3", "Conv2d", "preconditioned", "excluded", "%"):
        assert word in text
    assert len(lines) == 2 + 5 + 1
    assert all(line == line.rstrip() for line in lines)


def test_a_model_without_parameters_has_an_empty_report() -> None:
    report = Preconditioner(nn.ReLU()).coverage()
    assert list(report) == []
    assert report.share(Treatment.BASE) == 0.0
    assert str(report)


def test_scalars_and_lazy_modules() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    assert "scalar" in str(report_of(Scaled()))
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"(?i)lazy|initiali"):
        KFAC(lazy)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (("2",), ["0", "5"]),
        (("[02]",), ["5"]),
        ((nn.Conv2d,), ["5"]),
        ((nn.Conv2d, "5"), []),
        ((), ["0", "2", "5"]),
    ],
)
def test_exclusion_by_name_pattern_and_type(exclude: tuple[object, ...], left: list[str]) -> None:
    report = report_of(convnet(), exclude=exclude)
    found = [e.name for e in report if e.treatment is Treatment.PRECONDITIONED]
    assert sorted({name.split(".")[0] for name in found}) == left


def test_biases_by_the_base_rule_are_no_columns() -> None:
    attention = nn.MultiheadAttention(4, 2, kdim=3)  # whose biases are a matrix of their own
    model = nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Linear(4, 2), nn.LayerNorm(4), attention])
    found = survey(model, (), (nn.LayerNorm,), base=Base(biases=True))
    shapes = [(one.name, one.bias is None, one.geometry.columns) for one in found.layers]
    assert shapes == [
        ("0", True, 18),
        ("1", True, 4),
        ("2", False, 1),  # scale and shift of a channel are no matrix and a bias
        ("3.q_proj", True, 4),
        ("3.k_proj", True, 3),
        ("3.v_proj", True, 4),
        ("3.out_proj", True, 4),
    ]
    reasons = {one.name: one.reason for one in found.coverage if "bias" in one.name}
    left = {name for name, reason in reasons.items() if reason.startswith("bias:")}
    assert left == {"0.bias", "1.bias", "3.in_proj_bias", "3.out_proj.bias"}


def test_biases_by_the_base_rule_step_by_it() -> None:
    model = mlp()
    optimizer = THOR(model, base=Base("adamw", biases=True), norm_control="spectral", lr=0.01)
    train(model, optimizer, [data(8), data(8)])
    assert set(optimizer.factor_norms()) == {"0", "2"}
    for name, parameter in model.named_parameters():
        assert ("exp_avg" in optimizer.state[parameter]) == name.endswith("bias")


def test_a_bias_whose_weight_another_optimizer_steps_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    params = [p for name, p in model.named_parameters() if name != "0.weight"]
    reasons = {one.name: one.reason for one in THOR(model, params).coverage()}
    assert reasons["0.weight"] == "in no parameter group of this optimizer"
    assert reasons["0.bias"] == "its weight is in no parameter group of this optimizer"
