"""Promise: layout and type of tensors change nothing but speed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import (
    AT_EVERY_STEP,
    EXACT,
    convnet,
    data,
    gradients,
    mean_half_square,
    mlp,
    train,
    weights,
)
from torch_thor import THOR, Preconditioner, Refresh


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("split", [None, 5])
def test_channels_last_gives_the_same_step(split: int | None, groups: int) -> None:
    """Case 13, 41: weights and gradients that are not contiguous."""
    start = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=groups),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).double()
    batches = [data(8, 2, 6, 6, dtype=torch.float64) for _ in range(3)]
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = copy.deepcopy(start).to(memory_format=order)
        optimizer = THOR(model, norm_control="graft", split=split, **AT_EVERY_STEP)
        train(model, optimizer, [(x.to(memory_format=order), y) for x, y in batches])
        assert model.get_parameter("0.weight").is_contiguous(memory_format=order)
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other.contiguous())


def test_a_weight_that_is_a_transposed_view_trains() -> None:
    """Case 41: non-contiguous tensors."""
    layer = nn.Linear(5, 3).double()
    plain = copy.deepcopy(layer)
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    assert not layer.weight.is_contiguous()
    batches = [data(8, dtype=torch.float64) for _ in range(3)]
    for model in (layer, plain):
        train(model, THOR(model, norm_control="graft", **AT_EVERY_STEP), batches)
    torch.testing.assert_close(layer.weight.contiguous(), plain.weight)


def test_inputs_that_are_views_count_as_their_copies() -> None:
    """Case 41."""
    table, targets = torch.randn(5, 8).double(), torch.randn(8, 3).double()
    found = []
    for inputs in (table.T, table.T.contiguous()):
        torch.manual_seed(1)
        model = mlp().double()
        preconditioner = Preconditioner(model, **EXACT)
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_type_of_the_inverses_changes_little(dtype: torch.dtype) -> None:
    """Issue: inverses may be kept in bfloat16; the trajectory stays near."""
    batches = [data(16, 2, 6, 6) for _ in range(5)]
    found = []
    for kept in (None, dtype):
        torch.manual_seed(1)
        model = convnet()
        options = {**AT_EVERY_STEP, "refresh": Refresh(stagger=False, inverse_dtype=kept)}
        optimizer = THOR(model, norm_control="graft", lr=0.02, **options)
        train(model, optimizer, batches)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found.append(torch.cat([one.flatten() for one in weights(model)]))
    assert torch.nn.functional.cosine_similarity(found[0], found[1], dim=0) > 0.999


@pytest.mark.parametrize("shape", [(0, 5), (0, 4, 5)])
def test_an_empty_batch_is_no_error(shape: tuple[int, ...]) -> None:
    """Case 39 (one process): a rank's last batch may be empty."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    optimizer.zero_grad()
    model(torch.randn(shape)).sum().backward()
    optimizer.step()
    train(model, optimizer, [data(8)])
    assert all(one.isfinite().all() for one in weights(model))


def test_a_single_unbatched_sample_trains() -> None:
    """Linear on [in] and Conv2d on [channels, height, width]."""
    for model, shape in ((nn.Linear(5, 3), (5,)), (nn.Conv2d(2, 3, 2), (2, 4, 4))):
        optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
        before = weights(model)
        model(torch.randn(shape)).square().sum().backward()
        optimizer.step()
        for old, new in zip(before, weights(model), strict=True):
            assert new.isfinite().all()
            assert not torch.equal(old, new)
