"""Promise: whatever stack of layers a model is, each layer's statistics are the oracle's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foreign import Conv1D
from helpers import EXACT, half_square
from oracle import Observed, blocks_only, dense_fisher, direction, factors, inverse_power
from oracle.layers import Norm, observe_matrices, weight_gradients
from peek import factors_of
from torch_thor import Damping, Preconditioner, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONAL = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.Tanh,
    nn.GELU,
    nn.Identity,
    lambda: nn.SiLU(inplace=True),
]


@dataclass
class Stack:
    """A model under construction and the shape of its activations, [channels, h, w] or [t, d]."""

    shape: tuple[int, ...]
    layers: list[nn.Module] = field(default_factory=list)

    def add(self, layer: nn.Module) -> None:
        """Appends a layer and follows its shape."""
        self.layers.append(layer)
        with torch.no_grad():
            self.shape = tuple(layer(torch.zeros(2, *self.shape)).shape[1:])


@dataclass(frozen=True)
class Drawn:
    """A model, a batch that fits it, and how statistics are taken."""

    model: nn.Sequential
    inputs: Tensor
    cuts: list[int]
    sharing: Literal["expand", "reduce"]
    reduction: Literal["mean", "sum"]
    split: int | None
    mode: Literal["both", "sqrt", "pi", "relative"]
    power: float


def image_layer(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """Some layer over [channels, h, w] of at least 1 × 1."""
    channels, *size = shape
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    outputs, bias = groups * draw(st.integers(1, 2)), draw(st.booleans())
    kind = draw(st.sampled_from(["conv", "transposed", "group norm", "layer norm"]))
    if kind == "group norm":
        return nn.GroupNorm(groups, channels)
    if kind == "layer norm":
        return nn.LayerNorm(size[-1], bias=bias)
    if kind == "transposed":
        stride = draw(st.integers(1, 2))
        return nn.ConvTranspose2d(
            channels,
            outputs,
            (draw(st.integers(1, 2)), 2),
            stride=stride,
            output_padding=draw(st.integers(0, stride - 1)),
            groups=groups,
            bias=bias,
        )
    height, width = (draw(st.integers(1, min(3, length))) for length in size)
    return nn.Conv2d(
        channels,
        outputs,
        (height, width),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        groups=groups,
        bias=bias,
        padding_mode=draw(st.sampled_from(["zeros", "circular", "replicate"])),
    )


def row_layer(draw: st.DrawFn, shape: tuple[int, ...]) -> nn.Module:
    """Some layer over [..., width]."""
    width, outputs, bias = shape[-1], draw(st.integers(1, 4)), draw(st.booleans())
    build: Callable[[], nn.Module] = draw(
        st.sampled_from(
            [
                lambda: nn.Linear(width, outputs, bias=bias),
                lambda: Conv1D(outputs, width),
                lambda: nn.LayerNorm(width, bias=bias),
                # an embedding's padding row is all zeros: the default eps makes its gradient 1e8
                lambda: nn.RMSNorm(width, eps=1e-5),
            ]
        )
    )
    return build()


@st.composite
def models(draw: st.DrawFn) -> Drawn:
    """One to four layers with curvature, activations between them, and every option."""
    samples = draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["images", "rows", "tokens"]))
    low, axes = (2, 3) if kind == "images" else (1, 2)
    start = tuple(draw(st.integers(low, 4)) for _ in range(axes))
    stack, inputs = Stack(start), torch.randn(samples, *start).double()
    if kind == "tokens":
        words = draw(st.integers(2, 6))
        padding = draw(st.none() | st.integers(0, words - 1))
        stack.layers.append(nn.Embedding(words, start[-1], padding_idx=padding))
        inputs = torch.randint(words, (samples, start[0]))
    some_layer = image_layer if kind == "images" else row_layer
    for _ in range(draw(st.integers(1, 3))):
        stack.add(some_layer(draw, stack.shape))
        stack.add(draw(st.sampled_from(ACTIVATIONS))())
    if draw(st.booleans()):
        stack.add(nn.Flatten())
        stack.add(nn.Linear(stack.shape[0], draw(st.integers(1, 3))))
    cut = draw(st.integers(0, samples - 1))
    return Drawn(
        nn.Sequential(*stack.layers).double(),
        inputs,
        [cut, samples - cut] if cut else [samples],
        draw(st.sampled_from(["expand", "reduce"])),
        draw(st.sampled_from(["mean", "sum"])),
        draw(st.sampled_from([None, 1, 2, 3])),
        draw(st.sampled_from(["both", "sqrt", "relative"])),
        draw(st.sampled_from([1.0, 0.5])),
    )


def engine_for(drawn: Drawn) -> Preconditioner:
    kinds = {type(module) for module in drawn.model}
    statistics = Statistics(
        decay=0, rows=None, weight_sharing=drawn.sharing, loss_reduction=drawn.reduction
    )
    options: dict[str, Any] = {
        **EXACT,
        "statistics": statistics,
        "damping": Damping(0.3, drawn.mode),
        "split": drawn.split,
        "power": drawn.power,
        "include": tuple(kind for kind in OPTIONAL if kind in kinds),
    }
    return Preconditioner(drawn.model, **options)


def check_norm(
    preconditioner: Preconditioner, name: str, module: Norm, seen: list[Observed], drawn: Drawn
) -> None:
    """A norm's Fisher is not factored, not cut, and damped once."""
    stepped = weight_gradients(module)
    scale = 1 if drawn.reduction == "mean" else len(drawn.inputs)
    found = factors_of(preconditioner, name)
    for (A, G), matrix, moved in zip(found, seen, stepped, strict=True):
        F = dense_fisher(matrix)
        torch.testing.assert_close((A, G), (torch.ones(1, 1).double(), F))
        if float(F.trace()) < 1e-16:
            continue  # as below
        shift = 0.3 * (float(F.trace()) / len(F) if drawn.mode == "relative" else 1)
        root = inverse_power(F + shift * torch.eye(len(F)).double(), drawn.power)
        torch.testing.assert_close(moved.T, root @ matrix.mean_gradient.T * scale)


@settings(max_examples=60)
@given(models())
def test_factors_and_directions_of_random_models_are_the_oracles(drawn: Drawn) -> None:
    """Case 13, 15, 16, 17, 18: all at once, in any combination."""
    model, inputs = drawn.model, drawn.inputs
    targets = torch.randn_like(model(inputs)).detach()
    preconditioner = engine_for(drawn)
    divisor = len(inputs) if drawn.reduction == "mean" else 1
    for x, y in zip(inputs.split(drawn.cuts), targets.split(drawn.cuts), strict=True):
        (half_square(model(x), y) / divisor).backward()
    preconditioner.step()
    for layer in preconditioner.engine.layers:
        seen = observe_matrices(model, layer.name, inputs, targets, half_square)
        if isinstance(layer.module, Norm):
            check_norm(preconditioner, layer.name, layer.module, seen, drawn)
            continue
        used = "expand" if isinstance(layer.module, nn.Embedding) else drawn.sharing
        expected = [factors(matrix, used) for matrix in seen]
        # an embedding's A is cut into single rows, and stays as it is: it is diagonal
        cut = 1 if isinstance(layer.module, nn.Embedding) else drawn.split
        kept = [(blocks_only(A, cut), blocks_only(G, drawn.split)) for A, G in expected]
        torch.testing.assert_close(factors_of(preconditioner, layer.name), kept)
        stepped = weight_gradients(layer.module)
        for matrix, (A, G), found in zip(seen, expected, stepped, strict=True):
            if min(float(A.trace()), float(G.trace())) < 1e-16:
                continue  # zeros but for rounding, whose inverse is noise; see test_numerics
            total = matrix.mean_gradient * (len(inputs) / divisor)
            wanted = direction(
                total, A, G, damping=0.3, mode=drawn.mode, power=drawn.power, split=drawn.split
            )
            torch.testing.assert_close(found, wanted)
