"""Rows of the layer types beyond Linear and convolutions, position by position, by definition.

For every matrix of a layer the gradient is Σ g aᵀ over rows; what the rows are is written out here
in the direction of the layer's own forward (a transposed convolution scatters, a norm subtracts).
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn

from oracle.samples import Observed, gradients_of, rows_of, run_once, weight_gradients_of

if TYPE_CHECKING:
    from torch import Tensor

    from oracle.samples import SampleLoss

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Norm = BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm


def observe_matrices(
    model: nn.Module, name: str, inputs: Tensor, targets: Tensor, sample_loss: SampleLoss
) -> list[Observed]:
    """As ``observe``, for every layer type that the product knows: one ``Observed`` a matrix."""
    twin = copy.deepcopy(model).double()
    layer = twin.get_submodule(name)
    found: list[Observed] = []
    for index in range(len(inputs)):
        sample, target = inputs[index : index + 1], targets[index : index + 1].double()
        sample = sample.double() if sample.is_floating_point() else sample
        calls = run_once(twin, layer, sample, target, sample_loss)
        rows = [input_rows(layer, seen, gradient) for seen, gradient in calls]
        gradients = [output_rows(layer, gradient) for _, gradient in calls]
        weights = weight_gradients(layer)
        found = found or [Observed([], [], []) for _ in weights]
        for matrix, into in enumerate(found):
            into.inputs.append(torch.cat([one[matrix] for one in rows]))
            into.output_gradients.append(torch.cat([one[matrix] for one in gradients]))
            into.weight_gradients.append(weights[matrix])
    return found


def input_rows(layer: nn.Module, seen: Tensor, gradient: Tensor) -> list[Tensor]:
    """a per matrix, [positions, in (+1)], of one sample with its batch dimension."""
    if isinstance(layer, Transposed):
        return transposed_rows(layer, seen[0], tuple(gradient.shape[2:]))
    if isinstance(layer, nn.Embedding):
        rows = torch.zeros(seen.numel(), layer.num_embeddings, dtype=torch.float64)
        for row, token in enumerate(seen.flatten().tolist()):
            rows[row, token] = float(token != layer.padding_idx)
        return [rows]
    if isinstance(layer, Norm):
        return [
            torch.tensor(
                [[x, 1.0] if has_bias(layer) else [x] for x in channel], dtype=torch.float64
            )
            for channel in channels_of(layer, normalized(layer, seen)[0])
        ]
    if is_transposed_linear(layer):
        rows = seen.flatten(0, -2)
        return [torch.cat([rows, torch.ones(len(rows), 1).double()], dim=1)]
    return rows_of(layer, seen)


def output_rows(layer: nn.Module, gradient: Tensor) -> list[Tensor]:
    """g per matrix, [positions, out], in the same order of positions."""
    if isinstance(layer, Transposed):
        per_group = layer.out_channels // layer.groups
        flat = gradient[0].flatten(1)
        return [flat[g * per_group : (g + 1) * per_group].T for g in range(layer.groups)]
    if isinstance(layer, Norm):
        return [
            torch.tensor([[x] for x in channel], dtype=torch.float64)
            for channel in channels_of(layer, gradient[0])
        ]
    if isinstance(layer, nn.Embedding) or is_transposed_linear(layer):
        return [gradient.flatten(0, -2)]
    return gradients_of(layer, gradient)


def weight_gradients(layer: nn.Module) -> list[Tensor]:
    """The gradient of autograd per matrix, [out, in (+1)]."""
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return weight_gradients_of(layer)
    weight, bias = layer.get_parameter("weight").grad, getattr(layer, "bias", None)
    assert weight is not None
    if isinstance(layer, Transposed):
        per_group = len(weight) // layer.groups
        pieces = [weight[g * per_group : (g + 1) * per_group] for g in range(layer.groups)]
        matrices = [piece.transpose(0, 1).flatten(1) for piece in pieces]
    elif isinstance(layer, Norm):
        matrices = [entry.reshape(1, 1) for entry in weight]
    else:
        matrices = [weight.T]
    if bias is not None:
        columns = bias.grad.reshape(len(matrices), -1, 1)
        matrices = [torch.cat(pair, dim=1) for pair in zip(matrices, columns, strict=True)]
    return [matrix.clone() for matrix in matrices]


def transposed_rows(layer: Transposed, sample: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """Scatters every input through every tap to the output position that it reaches."""
    per_group, taps = layer.in_channels // layer.groups, math.prod(layer.kernel_size)
    width = per_group * taps + int(layer.bias is not None)
    rows = [torch.zeros(math.prod(size), width, dtype=torch.float64) for _ in range(layer.groups)]
    padding = layer.padding
    assert not isinstance(padding, str)
    for at in product(*(range(length) for length in sample.shape[1:])):
        for number, tap in enumerate(product(*(range(kernel) for kernel in layer.kernel_size))):
            reached = [
                q * stride - pad + t * dilation
                for q, t, stride, pad, dilation in zip(
                    at, tap, layer.stride, padding, layer.dilation, strict=True
                )
            ]
            if not all(0 <= p < length for p, length in zip(reached, size, strict=True)):
                continue
            flat = 0
            for p, length in zip(reached, size, strict=True):
                flat = flat * length + p
            for channel in range(layer.in_channels):
                group, inside = divmod(channel, per_group)
                rows[group][flat, inside * taps + number] = sample[(channel, *at)]
    if layer.bias is not None:
        for one in rows:
            one[:, -1] = 1.0
    return rows


def normalized(layer: Norm, seen: Tensor) -> Tensor:
    """x̂ of one sample [1, ...]: what scale and shift work on."""
    if isinstance(layer, BatchNorm):
        assert not layer.training, "the statistics of a batch are no matter of one sample"
        assert layer.running_mean is not None
        assert layer.running_var is not None
        shape = (1, -1, *[1] * (seen.dim() - 2))
        spread = (layer.running_var + layer.eps).sqrt()
        return (seen - layer.running_mean.view(shape)) / spread.view(shape)
    if isinstance(layer, nn.GroupNorm):
        groups = seen.reshape(layer.num_groups, -1)
        return torch.stack([standardized(one, layer.eps) for one in groups]).view(seen.shape)
    rows = seen.reshape(-1, seen.shape[-1])
    if isinstance(layer, nn.RMSNorm):
        eps = torch.finfo(seen.dtype).eps if layer.eps is None else layer.eps
        done = [row / (row.square().mean() + eps).sqrt() for row in rows]
    else:
        done = [standardized(row, layer.eps) for row in rows]
    return torch.stack(done).view(seen.shape)


def standardized(values: Tensor, eps: float) -> Tensor:
    """Mean 0 and (biased) variance 1."""
    centred = values - values.mean()
    return centred / (centred.square().mean() + eps).sqrt()


def channels_of(layer: Norm, sample: Tensor) -> list[list[float]]:
    """The values of one sample, channel by channel."""
    last = isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    flat = sample.reshape(-1, sample.shape[-1]).T if last else sample
    result: list[list[float]] = flat.reshape(len(flat), -1).tolist()
    return result


def has_bias(layer: nn.Module) -> bool:
    """Whether the layer shifts."""
    return getattr(layer, "bias", None) is not None


def is_transposed_linear(layer: nn.Module) -> bool:
    """Hugging Face's ``Conv1D``, known by its name."""
    return type(layer).__name__ == "Conv1D"


class LiteralAttention(nn.Module):
    """Multi-head attention from four Linears, head by head, over [N, L, E] and [N, S, ...]."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        size, self.heads = fused.embed_dim, fused.num_heads
        bias = fused.in_proj_bias is not None
        keys, values = fused.kdim or size, fused.vdim or size
        self.q, self.k = nn.Linear(size, size, bias), nn.Linear(keys, size, bias)
        self.v, self.o = nn.Linear(values, size, bias), nn.Linear(size, size, bias)
        packed = fused.in_proj_weight
        for number, (layer, name) in enumerate(((self.q, "q"), (self.k, "k"), (self.v, "v"))):
            here = slice(number * size, (number + 1) * size)
            own = dict(fused.named_parameters()).get(f"{name}_proj_weight")
            layer.weight = nn.Parameter((packed[here] if own is None else own).detach().clone())
            if bias:
                layer.bias = nn.Parameter(fused.in_proj_bias[here].data)
        self.double().o.load_state_dict(fused.out_proj.state_dict())

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention without masks."""
        q, k, v = self.q(query), self.k(key), self.v(value)
        width = q.shape[-1] // self.heads
        heads = []
        for head in range(self.heads):
            here = slice(head * width, (head + 1) * width)
            scores = q[..., here] @ k[..., here].mT / math.sqrt(width)
            heads.append(scores.softmax(-1) @ v[..., here])
        mixed: Tensor = self.o(torch.cat(heads, dim=-1))
        return mixed
