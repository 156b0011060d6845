"""What a layer sees and gets back, one sample at a time: one forward and one backward for each."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from oracle.geometry import conv_patches, linear_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    SampleLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Observed:
    """One weight matrix of a layer (a grouped convolution has one per group), over N samples.

    Attributes:
        inputs: per sample, rows a [positions, in (+1)].
        output_gradients: per sample, rows g [positions, out], gradients of the sample's *own* loss.
        weight_gradients: per sample, [out, in (+1)] from autograd, bias in the last column.
    """

    inputs: list[Tensor]
    output_gradients: list[Tensor]
    weight_gradients: list[Tensor]

    @property
    def mean_gradient(self) -> Tensor:
        """The gradient of the mean of the samples' losses."""
        return sum(self.weight_gradients, torch.zeros(())) / len(self.weight_gradients)


def observe(
    model: nn.Module, name: str, inputs: Tensor, targets: Tensor, sample_loss: SampleLoss
) -> list[Observed]:
    """Run a float64 copy of the model on every sample alone and watch the layer called ``name``.

    Args:
        model: any model whose output for one sample does not depend on the others.
        name: the layer's name in the model; ``""`` is the model itself.
        inputs: [N, ...].
        targets: [N, ...].
        sample_loss: (outputs [1, ...], targets [1, ...]) -> scalar, the loss of that one sample.
    """
    twin = copy.deepcopy(model).double()
    layer = twin.get_submodule(name)
    groups = getattr(layer, "groups", 1)
    found = [Observed([], [], []) for _ in range(groups)]
    for index in range(len(inputs)):
        sample = inputs[index : index + 1]
        sample = sample.double() if sample.is_floating_point() else sample
        target = targets[index : index + 1]
        target = target.double() if target.is_floating_point() else target
        calls = run_once(twin, layer, sample, target, sample_loss)
        for group, into in enumerate(found):
            rows = [rows_of(layer, seen)[group] for seen, _ in calls]
            gradients = [gradients_of(layer, grad)[group] for _, grad in calls]
            into.inputs.append(torch.cat(rows))
            into.output_gradients.append(torch.cat(gradients))
            into.weight_gradients.append(weight_gradients_of(layer)[group])
    return found


def run_once(
    model: nn.Module, layer: nn.Module, sample: Tensor, target: Tensor, sample_loss: SampleLoss
) -> list[tuple[Tensor, Tensor]]:
    """(input, output gradient) of every call of the layer in one forward and backward."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append((args[0].detach().clone(), output))
        output.retain_grad()
        return output.clone()  # an in-place activation behind the layer works on the clone

    handle = layer.register_forward_hook(record)
    model.zero_grad()
    sample_loss(model(sample), target).backward()
    handle.remove()
    result = []
    for seen, output in calls:
        assert output.grad is not None
        result.append((seen, output.grad))
    return result


def rows_of(layer: nn.Module, seen: Tensor) -> list[Tensor]:
    """Input rows per group of one sample, whose batch dimension is still there."""
    if isinstance(layer, nn.Linear):
        return [linear_rows(layer, seen)]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return conv_patches(layer, seen[0])


def gradients_of(layer: nn.Module, gradient: Tensor) -> list[Tensor]:
    """Output gradient rows per group, in the same order of positions as the input rows."""
    if isinstance(layer, nn.Linear):
        return [gradient.reshape(-1, layer.out_features)]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    channels = list(gradient[0])  # [*size] each
    per_group = layer.out_channels // layer.groups
    return [
        torch.stack(
            [c.flatten() for c in channels[group * per_group : (group + 1) * per_group]], dim=1
        )
        for group in range(layer.groups)
    ]


def weight_gradients_of(layer: nn.Module) -> list[Tensor]:
    """[out/groups, in (+1)] per group."""
    assert isinstance(layer.weight, torch.Tensor)
    assert layer.weight.grad is not None
    matrix = layer.weight.grad.flatten(1)
    if layer.bias is not None:
        assert isinstance(layer.bias, torch.Tensor)
        assert layer.bias.grad is not None
        matrix = torch.cat([matrix, layer.bias.grad[:, None]], dim=1)
    groups = getattr(layer, "groups", 1)
    rows = len(matrix) // groups
    return [matrix[group * rows : (group + 1) * rows].clone() for group in range(groups)]
