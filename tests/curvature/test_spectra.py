"""Ranks and conditions of factors, against all eigenvalues of dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import convnet, data, mean_half_square, mlp
from models import Transformer, batch_for, included
from peek import factors_of
from torch_thor import KFAC, THOR, Damping, Preconditioner
from torch_thor.curvature.spectra import spectra


@pytest.mark.parametrize("mode", ["relative", "both", "sqrt", "pi"])
@pytest.mark.parametrize(("build", "split"), [(mlp, None), (mlp, 3), (convnet, None), (convnet, 4)])
def test_they_are_those_of_the_dense_matrices(build: Any, split: int | None, mode: Any) -> None:
    model = build()
    trainer = Preconditioner(model, split=split, damping=Damping(0.1, mode))
    inputs, targets = data(8, *(() if build is mlp else (2, 6, 6)))
    mean_half_square(model(inputs), targets).backward()
    trainer.step()
    for one in trainer.statistics():
        pairs = factors_of(trainer, one.name)
        ranks, conditions = [], []
        for sides in pairs:
            means = [side.trace() / len(side) for side in sides]
            by_mode: dict[str, list[Any]] = {
                "relative": [0.1 * mean for mean in means],
                "both": [0.1, 0.1],
                "sqrt": [0.1**0.5, 0.1**0.5],
                "pi": [(0.1 * means[0] / means[1]) ** 0.5, (0.1 * means[1] / means[0]) ** 0.5],
            }
            shifts, values = by_mode[mode], [torch.linalg.eigvalsh(side.double()) for side in sides]
            ranks.append([float(v.sum() ** 2 / v.square().sum()) for v in values])
            conditions.append([float((v[-1] + s) / s) for v, s in zip(values, shifts, strict=True)])
        mean_ranks = torch.tensor(ranks).mean(0).tolist()
        most = torch.tensor(conditions).amax(0).tolist()
        assert [one.rank_a, one.rank_g] == pytest.approx(mean_ranks, rel=1e-3)
        assert [one.condition_a, one.condition_g] == pytest.approx(most, rel=0.08)
        assert one.condition_a <= most[0] * 1.0001


def test_an_eigenvalue_that_many_are_about_as_large_as() -> None:
    """What a power iteration is worst at: the estimate is below by a few per cent."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 3))
    trainer = KFAC(model, damping=Damping(1.0, "both"))
    inputs, targets = torch.randn(4096, 64), torch.randn(4096, 3)
    mean_half_square(model(inputs), targets).backward()
    trainer.step()
    (pair,) = factors_of(trainer, "0")
    values = torch.linalg.eigvalsh(pair[0].double())
    assert values[-1] < 1.4  # all 64 within a band
    one = trainer.statistics().numbers()[0]
    assert 0.93 < (one.condition_a - 1.0) / float(values[-1]) <= 1.0001


def test_every_layer_type() -> None:
    model = Transformer()
    thor = THOR(model, norm_control="graft", split=5, include=included(model))
    inputs, targets = batch_for(model)
    (model(inputs) - targets).square().mean().backward()
    thor.step()
    for one in thor.statistics():
        assert 1.0 <= one.rank_a <= one.size[0] * 1.001, one
        assert 1.0 <= one.rank_g <= one.size[1] * 1.001, one
        assert one.condition_a >= 1.0
        assert one.condition_g >= 1.0


def test_layers_without_statistics_have_none() -> None:
    model = mlp()
    trainer = Preconditioner(model)
    trainer.allocate()
    found = spectra(trainer.engine.stacks, dict.fromkeys(model.parameters(), 0.1))
    assert all(one.isnan().all() for one in found)
