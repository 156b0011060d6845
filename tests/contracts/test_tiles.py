"""Singular values are made alike among as many rows as the batch pays for, and no others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from torch_thor import THOR, InvalidOptionError, NormControl

WIDTH = 256


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2)).double()


def backward(net: nn.Module, x: Tensor) -> None:
    (net(x) - x[..., :2].sin()).square().mean().backward()


def trained(
    tile: int | str | None, shape: tuple[int, ...], *, steps: int = 3, passes: int = 1
) -> list[Tensor]:
    torch.manual_seed(1)
    net = model()
    optimizer = THOR(net, norm_control=NormControl("spectral", tile=tile))  # type: ignore[arg-type]
    for _ in range(steps):
        optimizer.zero_grad()
        for x in torch.randn(*shape, dtype=torch.float64).chunk(passes):
            backward(net, x)
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


def assert_alike(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("shape", "passes", "tile"),
    [
        ((16, 6), 1, 128),
        ((1023, 6), 1, 128),
        ((1024, 6), 1, None),
        ((16, 64, 6), 1, None),  # 1024 positions
        ((1024, 6), 16, None),  # accumulated
    ],
)
def test_the_first_batch_says_how_many(
    shape: tuple[int, ...], passes: int, tile: int | None
) -> None:
    assert_alike(trained("auto", shape, passes=passes), trained(tile, shape, passes=passes))


def test_tiles_are_something_else_than_whole_layers() -> None:
    """Or the test above could not fail."""
    whole, tiled = (trained(tile, (16, 6)) for tile in (None, 128))
    assert any(not torch.equal(*pair) for pair in zip(whole, tiled, strict=True))


def test_a_last_short_batch_and_a_resumed_run_change_nothing() -> None:
    torch.manual_seed(1)
    net = model()
    optimizer = THOR(net)
    batches = [torch.randn(n, 6, dtype=torch.float64) for n in (1100, 1100, 8, 8)]
    for number, x in enumerate(batches):
        if number == 2:
            resumed = copy.deepcopy(net)
            other = THOR(resumed)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for late in batches[number:]:
                other.zero_grad()
                backward(resumed, late)
                other.step()
        optimizer.zero_grad()
        backward(net, x)
        optimizer.step()
    for mine, theirs in zip(net.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert all(stack.positions == 1100 for stack in other.engine.stacks)


def test_a_layer_that_thaws_leaves_the_tiles_of_the_others_as_they_are() -> None:
    net = model()
    net.insert(3, late := nn.Linear(WIDTH, WIDTH).double().requires_grad_(False))
    optimizer = THOR(net)
    for thaws in (False, True):
        late.requires_grad_(thaws)
        for _ in range(2):
            optimizer.zero_grad()
            backward(net, torch.randn(16, 6, dtype=torch.float64))
            optimizer.step()
    assert {len(stack.layers) for stack in optimizer.engine.stacks} == {1, 2}
    assert all(stack.positions == 16 for stack in optimizer.engine.stacks)


@pytest.mark.parametrize("tile", [0, -3, 2.5, "whole"])
def test_what_is_no_number_of_rows_is_refused(tile: object) -> None:
    with pytest.raises(InvalidOptionError, match="tile"):
        NormControl("spectral", tile=tile)  # type: ignore[arg-type]
