"""What hypothesis draws: layers of every geometry with inputs that fit them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: list[PaddingMode] = ["zeros", "reflect", "replicate", "circular"]


def small(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    """One number per axis."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn, samples: int = 1) -> tuple[nn.Conv2d, Tensor]:
    """A float64 Conv2d of any geometry, and images [samples, channels, height, width] for it."""
    groups = draw(st.sampled_from([1, 2, 3]))
    kernel, dilation, size = draw(small(1, 3)), draw(small(1, 2)), draw(small(3, 6))
    padding = draw(st.sampled_from(["same", "valid"]) | small(0, 2))
    mode = draw(st.sampled_from(PADDING_MODES))
    reach = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
    for length, needed, axis in zip(size, reach, range(2), strict=True):
        widest = {"same": (needed + 1) // 2, "valid": 0}.get(str(padding))
        added = needed if padding == "same" else 2 * (int(padding[axis]) if widest is None else 0)
        pad = int(padding[axis]) if widest is None else widest
        assume(length + added > needed)  # at least one position
        assume(pad < length or mode in {"zeros", "replicate"})  # torch's own limit
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=(1, 1) if padding == "same" else draw(small(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer.double(), torch.randn(samples, layer.in_channels, *size, dtype=torch.float64)


@st.composite
def linears(draw: st.DrawFn, samples: int = 1) -> tuple[nn.Linear, Tensor]:
    """A float64 Linear with zero to two shared dimensions, and inputs [samples, *, in_features]."""
    shared = draw(st.lists(st.integers(1, 3), max_size=2))
    layer = nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 5)), bias=draw(st.booleans()))
    return layer.double(), torch.randn(samples, *shared, layer.in_features, dtype=torch.float64)
