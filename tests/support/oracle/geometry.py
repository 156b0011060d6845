"""Which inputs meet which weights: a layer's rows by definition, one position at a time."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
    Nested = list["Nested"] | float


def linear_rows(layer: nn.Linear, sample: Tensor) -> Tensor:
    """Rows [positions, in_features (+1)] of one sample [*, in_features]; bias column last."""
    rows = sample.reshape(-1, layer.in_features).tolist()
    if layer.bias is not None:
        rows = [[*row, 1.0] for row in rows]
    return torch.tensor(rows, dtype=sample.dtype)


def conv_patches(layer: Conv, sample: Tensor) -> list[Tensor]:
    """Rows [positions, in_channels/groups · taps (+1)] per group, of one sample [channels, *size].

    Positions run in row-major order over the output; within a row the order is channel, then tap,
    which is how torch flattens a weight.
    """
    size = tuple(sample.shape[1:])
    images = sample.tolist()  # nested lists: scalar reads from a tensor are slow
    before, after = padding_widths(layer)
    steps = [
        output_length(length, low + high, kernel, dilation, stride)
        for length, low, high, kernel, dilation, stride in zip(
            size, before, after, layer.kernel_size, layer.dilation, layer.stride, strict=True
        )
    ]
    per_group = layer.in_channels // layer.groups
    rows_by_group = []
    for group in range(layer.groups):
        channels = range(group * per_group, (group + 1) * per_group)
        rows = []
        for position in product(*(range(count) for count in steps)):
            row = []
            for channel in channels:
                for tap in product(*(range(kernel) for kernel in layer.kernel_size)):
                    at = [
                        where * stride + offset * dilation - low
                        for where, stride, offset, dilation, low in zip(
                            position, layer.stride, tap, layer.dilation, before, strict=True
                        )
                    ]
                    row.append(read(images[channel], at, size, layer.padding_mode))
            if layer.bias is not None:
                row.append(1.0)
            rows.append(row)
        rows_by_group.append(torch.tensor(rows, dtype=sample.dtype))
    return rows_by_group


def output_length(length: int, padding: int, kernel: int, dilation: int, stride: int) -> int:
    """How many windows fit, counted by moving one along the padded axis."""
    reach = dilation * (kernel - 1)
    padded = length + padding
    return sum(1 for start in range(0, padded, stride) if start + reach < padded)


def padding_widths(layer: Conv) -> tuple[list[int], list[int]]:
    """Padding before and after each axis."""
    if layer.padding == "valid":
        zeros = [0] * len(layer.kernel_size)
        return zeros, list(zeros)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    assert not isinstance(layer.padding, str)
    return list(layer.padding), list(layer.padding)


def read(image: Nested, at: Sequence[int], size: Sequence[int], mode: str) -> float:
    """The value at a position that may lie outside the image."""
    value = image
    for index, length in zip(at, size, strict=True):
        inside = index
        if not 0 <= index < length:
            if mode == "zeros":
                return 0.0
            if mode == "circular":
                inside = index % length
            elif mode == "replicate":
                inside = 0 if index < 0 else length - 1
            else:
                assert mode == "reflect", mode
                inside = -index if index < 0 else 2 * (length - 1) - index
        assert isinstance(value, list)
        value = value[inside]
    assert isinstance(value, float)
    return value
