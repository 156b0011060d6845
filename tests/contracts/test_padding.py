"""Promise: padded tokens are nobody's rows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import AT_EVERY_STEP
from torch_thor import KFAC, THOR, CurvatureWarning, InvalidOptionError, Statistics

WORDS, WIDTH, SAMPLES, LENGTH, REAL = 7, 6, 4, 9, 5


class Tagger(nn.Module):
    """A label for every token; attention over the real ones where asked for."""

    def __init__(self, *, attends: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if attends else None
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        x = self.embed(tokens)
        if self.attention is not None:
            x = x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        return self.last(self.first(x).tanh())


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(WORDS, (SAMPLES, LENGTH))
    targets = torch.randint(WORDS, (SAMPLES, LENGTH))
    targets[:, REAL:] = -100
    return tokens, targets


def norms(build: Any, length: int, *, attends: bool = False, **options: Any) -> dict[str, float]:
    torch.manual_seed(1)
    model = Tagger(attends=attends).double()
    tokens, targets = batch()
    optimizer = build(model, lr=0.0, include=(nn.Embedding,), **options)
    padding = targets[:, :length] == -100
    outputs = model(tokens[:, :length], padding)
    nn.functional.cross_entropy(outputs.flatten(0, 1), targets[:, :length].flatten()).backward()
    optimizer.step()
    found: dict[str, float] = optimizer.factor_norms()
    return found


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "positions_mean"])
def test_padding_without_a_gradient_is_left_out(reduction: Any, attends: bool) -> None:
    """Case 62: the statistics are those of the batch without its padding."""
    options = {"statistics": Statistics(decay=0.0, rows=None, loss_reduction=reduction)}
    padded, short = (norms(KFAC, n, attends=attends, **options) for n in (LENGTH, REAL))
    assert len(short) == (5 if attends else 3)
    assert padded == pytest.approx(short, rel=1e-9)


def test_the_step_of_the_defaults_is_that_of_the_batch_without_padding() -> None:
    """Case 62."""
    found = []
    for length in (LENGTH, REAL):
        torch.manual_seed(1)
        model = Tagger(attends=False).double()
        tokens, targets = batch()
        optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
        outputs = model(tokens[:, :length], None)
        nn.functional.cross_entropy(outputs.flatten(0, 1), targets[:, :length].flatten()).backward()
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_mask_leaves_out_positions_that_have_a_gradient(sharing: Any) -> None:
    """Case 62: a sum over all outputs, of which some are nobody's."""
    found = []
    for length in (LENGTH, REAL):
        torch.manual_seed(1)
        model = nn.Linear(WIDTH, 3).double()
        chosen = Statistics(decay=0.0, rows=None, weight_sharing=sharing)
        optimizer = KFAC(model, lr=0.0, statistics=chosen)
        inputs = torch.randn(SAMPLES, LENGTH, WIDTH).double()
        mask = torch.arange(LENGTH).expand(SAMPLES, -1) < REAL
        if length == LENGTH:
            optimizer.use_mask(mask)
            weights = mask if sharing == "reduce" else torch.ones_like(mask)
        else:
            inputs, weights = inputs[:, :REAL], mask[:, :REAL]
        (model(inputs).square().sum(-1) * weights).sum().div(SAMPLES).backward()
        optimizer.step()
        found.append(optimizer.factor_norms()[""])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_a_mask_holds_for_one_step_and_for_calls_of_its_shape() -> None:
    """Case 62."""
    model = nn.Linear(WIDTH, 3)
    optimizer = KFAC(model, lr=0.0, factor_interval=1, inverse_interval=1)
    inputs = torch.randn(SAMPLES, LENGTH, WIDTH)
    found = []
    for mask in (None, torch.zeros(SAMPLES, LENGTH + 1, dtype=torch.bool)):
        optimizer.reset_curvature()
        optimizer.zero_grad()
        if mask is not None:
            optimizer.use_mask(mask)
        model(inputs).square().sum().backward()
        with (
            nullcontext() if mask is None else pytest.warns(CurvatureWarning, match="fits no call")
        ):
            optimizer.step()
        found.append(optimizer.factor_norms())
    assert found[0] == found[1]


@pytest.mark.parametrize("mask", [torch.ones(2, 3), [[True]], None])
def test_what_is_no_mask_is_refused(mask: Any) -> None:
    """Case 62, 68."""
    with pytest.raises(InvalidOptionError, match="mask"):
        THOR(nn.Linear(3, 2), norm_control="graft").use_mask(mask)


def test_a_layer_all_of_whose_gradients_are_zero_has_statistics() -> None:
    """Zeros everywhere say nothing about padding: a head that starts at zero."""
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 3))
    nn.init.zeros_(model.get_parameter("1.weight"))
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    model(torch.randn(SAMPLES, LENGTH, WIDTH)).square().sum().backward()
    optimizer.step()
    stacks = optimizer.engine.stacks
    assert all(stack.a.traces.sum() > 0 for stack in stacks)
    assert all(all(stack.ready) for stack in stacks)
