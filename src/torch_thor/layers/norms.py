"""Scale and shift of normalization layers: the unit-wise Fisher of SP-NGD, channel by channel.

Channel c computes γ·x̂ + β. Its Fisher block of two rows and columns is taken as it is, from
the gradients of γ and β of every sample (Osawa et al. 2020, sec. 4.2); nothing is factored.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from torch_thor.layers.adapter import LayerAdapter, ModuleT, leading_shape
from torch_thor.layers.geometry import Geometry

if TYPE_CHECKING:
    from torch_thor.layers.rows import RowPlan

BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class ScaleShiftAdapter(LayerAdapter[ModuleT]):
    """What the norms share.

    Attributes:
        axis: Dimension of the channels.
    """

    by_default = False
    axis: int = 1

    @abstractmethod
    def normalized(self, module: ModuleT, inputs: Tensor) -> Tensor:
        """Returns x̂, the output before scale and shift."""

    def geometry(self, module: ModuleT, *, bias: bool) -> Geometry:
        """One column [γ, β] a channel."""
        channels = module.get_parameter("weight").numel()
        return Geometry(channels, 1 + int(bias), 1, bias=False, unit_wise=True)

    def call_shape(self, module: ModuleT, inputs: Tensor, output: Tensor) -> tuple[int, int]:
        """The first dimension counts samples, all others but the channels' positions."""
        return leading_shape(inputs.movedim(self.axis, -1).shape[:-1])

    def input_rows(self, module: ModuleT, inputs: Tensor, plan: RowPlan, *, bias: bool) -> Tensor:
        """x̂ of every position, channel by channel."""
        return self._rows(self.normalized(module, inputs), plan)

    def output_rows(self, module: ModuleT, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Output gradients of every position, channel by channel."""
        return self._rows(gradient, plan)

    def refusal(self, module: ModuleT) -> str:
        """Several normalized dimensions are no list of channels."""
        return "" if module.get_parameter("weight").dim() == 1 else "weight has several dimensions"

    def _rows(self, maps: Tensor, plan: RowPlan) -> Tensor:
        table = maps.movedim(self.axis, -1).reshape(plan.samples * plan.positions, -1)
        return table.T.unsqueeze(-1)


class BatchNormAdapter(ScaleShiftAdapter[BatchNorm]):
    """``nn.BatchNorm1d``, ``2d``, ``3d``."""

    def normalized(self, module: BatchNorm, inputs: Tensor) -> Tensor:
        """By the batch in training (running averages untouched), else by running averages."""
        mean, variance = module.running_mean, module.running_var
        if module.training or mean is None:
            return F.batch_norm(inputs, None, None, training=True, eps=module.eps)
        return F.batch_norm(inputs, mean, variance, training=False, eps=module.eps)


class GroupNormAdapter(ScaleShiftAdapter[nn.GroupNorm]):
    """``nn.GroupNorm``."""

    def normalized(self, module: nn.GroupNorm, inputs: Tensor) -> Tensor:
        """Group by group."""
        return F.group_norm(inputs, module.num_groups, eps=module.eps)


class LayerNormAdapter(ScaleShiftAdapter[nn.LayerNorm]):
    """``nn.LayerNorm`` over the last dimension."""

    axis = -1

    def normalized(self, module: nn.LayerNorm, inputs: Tensor) -> Tensor:
        """Over the last dimension."""
        return F.layer_norm(inputs, list(module.normalized_shape), eps=module.eps)


class RMSNormAdapter(ScaleShiftAdapter[nn.RMSNorm]):
    """``nn.RMSNorm`` over the last dimension."""

    axis = -1

    def normalized(self, module: nn.RMSNorm, inputs: Tensor) -> Tensor:
        """Over the last dimension."""
        normalized: Tensor = torch.rms_norm(inputs, list(module.normalized_shape), eps=module.eps)
        return normalized
