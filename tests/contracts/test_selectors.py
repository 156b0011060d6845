"""Promise: ``exclude`` and ``include`` mean what they name, with all that it holds, or say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import mlp
from torch_thor import EKFAC, KFAC, THOR, InvalidOptionError, Preconditioner, Treatment


class Block(nn.Module):
    """A container with a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norm(x))


class Net(nn.Module):
    """Two blocks, attention and a head; the head stands at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.also_head = self.head


ALL = {
    "blocks.0.inner.0.weight",
    "blocks.1.inner.0.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "head.weight",
}
BLOCKS = {"blocks.0.inner.0.weight", "blocks.1.inner.0.weight"}
ATTENTION = {"attention.in_proj_weight", "attention.out_proj.weight"}


def preconditioned(coverage: Any) -> set[str]:
    return {
        entry.name
        for entry in coverage
        if entry.treatment is Treatment.PRECONDITIONED and entry.name.endswith("weight")
    }


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ([Block], ALL - BLOCKS),
        (Block, ALL - BLOCKS),
        ("blocks", ALL - BLOCKS),
        ("blocks.1", ALL - {"blocks.1.inner.0.weight"}),
        ("blocks.[0]", ALL - {"blocks.0.inner.0.weight"}),
        (["*.inner"], ALL - BLOCKS),
        (nn.ModuleList, ALL - BLOCKS),
        (nn.MultiheadAttention, ALL - ATTENTION),
        ("attention", ALL - ATTENTION),
        ("attention.in_proj", ALL - {"attention.in_proj_weight"}),
        ("attention.out_proj", ALL - {"attention.out_proj.weight"}),
        ("also_head", ALL - {"head.weight"}),
        (Net, set()),
        ("", set()),
        ((), ALL),
    ],
    ids=lambda value: "left" if isinstance(value, set) else str(value),
)
@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC, Preconditioner])
def test_what_is_excluded_goes_with_all_that_it_holds(
    kind: Any, exclude: Any, left: set[str]
) -> None:
    """Case 63: a container by its class, its name or a pattern; one selector needs no brackets."""
    assert preconditioned(kind(Net(), exclude=exclude).coverage()) == left


@pytest.mark.parametrize("include", [Block, "blocks", ["blocks.*.norm"], nn.LayerNorm, (Block,)])
def test_what_is_included_comes_with_all_that_it_holds(include: Any) -> None:
    """Case 63, for the other option."""
    norms = {f"blocks.{n}.norm.weight" for n in (0, 1)}
    assert (
        preconditioned(THOR(Net(), norm_control="graft", include=include).coverage()) == ALL | norms
    )


def test_a_bare_string_is_one_name() -> None:
    """Case 63: ``"12"`` is not "1" and "2"."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(13)))
    names = {f"{n}.weight" for n in range(13)}
    assert preconditioned(THOR(model, norm_control="graft", exclude="12").coverage()) == names - {
        "12.weight"
    }


@pytest.mark.parametrize("option", ["exclude", "include"])
@pytest.mark.parametrize(
    ("selector", "shown"),
    [
        ("nowhere", "'nowhere'"),
        (["0", "no*where"], "'no*where'"),
        (nn.Conv2d, "'Conv2d'"),
        ([nn.Linear, Block], "'Block'"),
        ("12", "'12'"),
        (int, "'int'"),
        (3, "3"),
        (None, "None"),
        (True, "True"),
        ([0], "0"),
        ({"0": 1}, "{'0': 1}"),
        (torch.zeros(2), "tensor"),
    ],
    ids=str,
)
def test_what_means_nothing_is_an_error(option: str, selector: Any, shown: str) -> None:
    """Case 63."""
    with pytest.raises(InvalidOptionError, match=f"Invalid {option}=") as caught:
        THOR(mlp(), **{option: selector})
    assert shown in str(caught.value)
    assert "module" in str(caught.value)
