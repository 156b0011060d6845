"""Scale and shift of normalization layers: the unit-wise Fisher of SP-NGD, channel by channel.

Channel c computes γ·x̂ + β. Its Fisher block of two rows and columns is taken as it is, from
the gradients of γ and β of every sample (Osawa et al. 2020, sec. 4.2); nothing is factored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from torch_thor.layers.adapter import LayerAdapter, leading_shape
from torch_thor.layers.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_thor.layers.rows import RowPlan


class NormAdapter(LayerAdapter[nn.Module]):
    """One type of normalization.

    Args:
        normalized: Returns x̂, the output before scale and shift, for a module and its input.
        axis: Dimension of the channels.
    """

    by_default = False

    def __init__(self, normalized: Callable[[Any, Tensor], Tensor], axis: int = 1) -> None:
        self._normalized, self._axis = normalized, axis

    def geometry(self, module: nn.Module, *, bias: bool) -> Geometry:
        """One column [γ, β] a channel."""
        channels = module.get_parameter("weight").numel()
        return Geometry(channels, 1 + int(bias), 1, bias=False, unit_wise=True)

    def call_shape(self, module: nn.Module, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, all others but the channels' positions."""
        return leading_shape(inputs.movedim(self._axis, -1).shape[:-1])

    def input_rows(self, module: nn.Module, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """x̂ of every position, channel by channel."""
        return self.output_rows(module, self._normalized(module, inputs), plan)

    def output_rows(self, module: nn.Module, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Output gradients of every position, channel by channel."""
        table = gradient.movedim(self._axis, -1).reshape(plan.samples * plan.positions, -1)
        return table.T.unsqueeze(-1)

    def refusal(self, module: nn.Module) -> str:
        """Several normalized dimensions are no list of channels."""
        return "" if module.get_parameter("weight").dim() == 1 else "weight has several dimensions"


def _batch_norm(module: nn.BatchNorm1d, inputs: Tensor) -> Tensor:
    """By the batch in training (running averages untouched), else by running averages."""
    mean, variance = module.running_mean, module.running_var
    if module.training or mean is None:
        return F.batch_norm(inputs, None, None, training=True, eps=module.eps)
    return F.batch_norm(inputs, mean, variance, training=False, eps=module.eps)


def _group_norm(module: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return F.group_norm(inputs, module.num_groups, eps=module.eps)


def _layer_norm(module: nn.LayerNorm, inputs: Tensor) -> Tensor:
    return F.layer_norm(inputs, list(module.normalized_shape), eps=module.eps)


def _rms_norm(module: nn.RMSNorm, inputs: Tensor) -> Tensor:
    normalized: Tensor = torch.rms_norm(inputs, list(module.normalized_shape), eps=module.eps)
    return normalized


NORMS: dict[type[nn.Module], NormAdapter] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), NormAdapter(_batch_norm)),
    nn.GroupNorm: NormAdapter(_group_norm),
    nn.LayerNorm: NormAdapter(_layer_norm, axis=-1),
    nn.RMSNorm: NormAdapter(_rms_norm, axis=-1),
}
