"""Norm control on stacks, against the oracle's formulas for one layer at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from oracle import grafted, kl_clip_factor, with_rms
from torch_thor import THOR, InvalidOptionError, NormControl
from torch_thor.directions.controls import KLClip, LengthControl, control_of
from torch_thor.directions.lengths import Lengths
from torch_thor.linalg.partition import Partition

if TYPE_CHECKING:
    from torch_thor.options.norm_control import NormControlKind

# Two stacks of two layers each: [layers, matrices, out, columns]
SHAPES = [(2, 1, 3, 4), (2, 2, 2, 5)]
RATES = [[0.1, 0.2], [0.3, 0.4]]


def stacks() -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]


def controlled(
    control: NormControl,
    ours: list[Tensor],
    raw: list[Tensor],
    cuts: tuple[Partition | None, ...] = (None, None),
) -> list[Tensor]:
    """Every layer's direction after norm control."""
    lengths = control_of(control)
    assert isinstance(lengths, LengthControl)
    factors = Lengths(lengths, cuts, [None] * len(ours)).factors(ours, raw)
    return layers_of([stack * factor for stack, factor in zip(ours, factors, strict=True)])


def clip_factor(limit: float, ours: list[Tensor], raw: list[Tensor]) -> Tensor | float:
    return KLClip(NormControl("kl_clip", limit)).factor(ours, raw, RATES)


def layers_of(stacked: list[Tensor]) -> list[Tensor]:
    return [layer for stack in stacked for layer in stack]


def test_graft_takes_the_norm_of_what_was_preconditioned() -> None:
    ours, raw = stacks(), stacks()
    found = controlled(NormControl("graft"), ours, raw)
    expected = [grafted(*pair) for pair in zip(layers_of(ours), layers_of(raw), strict=True)]
    torch.testing.assert_close(found, expected)


def test_rms_fixes_the_root_mean_square_at_limit_over_root_columns() -> None:
    ours = stacks()
    found = controlled(NormControl("rms", limit=0.3), ours, stacks())
    expected = [with_rms(one, 0.3 / one.shape[-1] ** 0.5) for one in layers_of(ours)]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["graft", "rms"])
def test_blocks_of_rows_take_lengths_of_their_own(kind: NormControlKind) -> None:
    """Three rows in blocks of two: the last block has one; one layer whole beside them."""
    ours, raw = stacks(), stacks()
    found = controlled(NormControl(kind, 0.3), ours, raw, (Partition(3, 2), None))
    expected = []
    for one, source in zip(ours[0], raw[0], strict=True):
        parts = [
            grafted(one[:, rows], source[:, rows])
            if kind == "graft"
            else with_rms(one[:, rows], 0.3 / one.shape[-1] ** 0.5)
            for rows in (slice(0, 2), slice(2, 3))
        ]
        expected.append(torch.cat(parts, dim=1))
    whole = controlled(NormControl(kind, 0.3), [ours[1]], [raw[1]], (None,))
    torch.testing.assert_close(found, expected + whole)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_kl_clip_shares_one_factor_and_counts_the_rate_once(limit: float) -> None:
    ours = stacks()
    raw = [stack + 0.1 * noise for stack, noise in zip(ours, stacks(), strict=True)]
    clip = clip_factor(limit, ours, raw)
    found = [clip * stack for stack in ours]
    # a rate per layer is a rate inside the sum: move it into the vectors and use 1 outside
    rates = [rate for pair in RATES for rate in pair]
    weighted = [
        [rate * one for rate, one in zip(rates, layers_of(side), strict=True)]
        for side in (ours, raw)
    ]
    factor = kl_clip_factor(weighted[0], weighted[1], lr=1.0, kl=limit)
    assert (factor < 1) == (limit < 1)
    torch.testing.assert_close(layers_of(found), [factor * one for one in layers_of(ours)])


@pytest.mark.parametrize("kind", ["graft", "rms"])
def test_zero_directions_divide_by_nothing(kind: NormControlKind) -> None:
    zeros = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    found = controlled(NormControl(kind), zeros, zeros)
    assert all(torch.equal(one, torch.zeros_like(one)) for one in found)
    assert clip_factor(1e-9, zeros, zeros) == 1.0


def test_the_kl_clip_leaves_alone_what_does_not_descend() -> None:
    ours = stacks()
    for raw in ([0 * stack for stack in ours], [-stack for stack in ours]):
        assert clip_factor(1e-9, ours, raw) == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "clip"}, ["norm_control='clip'", "'kl_clip'", "'graft'", "'rms'"]),
        ({"kind": "rms", "limit": 0.0}, ["limit=0.0", "> 0"]),
    ],
)
def test_bad_norm_control_is_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^Invalid") as caught:
        NormControl(**arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def test_spectral_steps_have_the_length_of_rms() -> None:
    module = nn.Linear(6, 4)
    before = module.weight.detach().clone()
    thor = THOR(
        module, lr=0.1, weight_decay=0.0, norm_control=NormControl("spectral", 0.5), base="sgd"
    )
    module(torch.randn(12, 6)).square().mean().backward()
    bias = module.bias.detach().clone()
    thor.step()
    moved = torch.cat([module.weight - before, (module.bias - bias).unsqueeze(1)], 1).detach()
    torch.testing.assert_close(moved.norm(), torch.tensor(0.1 * 0.5 * 4**0.5))
    values = torch.linalg.svdvals(moved)
    assert float(values[0] / values[2]) < 3.0


def test_spectral_needs_iterations() -> None:
    with pytest.raises(InvalidOptionError, match="iterations"):
        NormControl("spectral", iterations=0)
