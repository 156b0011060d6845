"""Rules of matrices without curvature, a class each."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.directions.banded import gradient_of
from torch_thor.directions.orthogonal import orthogonalize
from torch_thor.linalg.foreach import add_, lots_of, mul_
from torch_thor.update.momentum import after_momentum, momentum_buffers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.options.update import MatrixRule, Update
    from torch_thor.update.groups import ParameterGroup
    from torch_thor.update.momentum import States

_ITERATIONS = 4
_SHORTEST = 1e-6  # of a direction that is not zero; one whose singular values are alike is about 1
_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Muon:
    """Momentum whose singular values are made alike (Jordan et al. 2024).

    An entry of a step has root mean square lr / √columns, as under the norm controls "rms" and
    "spectral". Decay is decoupled.

    Args:
        order: Of the update, for what it says of momentum.
        group: Whose parameters move.
    """

    order: Update
    group: ParameterGroup

    def step(
        self,
        parameters: Sequence[nn.Parameter],
        shapes: Mapping[nn.Parameter, _Shape],
        states: States,
    ) -> None:
        """Moves parameters, each as its matrices (count, rows, columns), along their gradients."""
        lr, momentum = float(self.group["lr"]), self.group["momentum"]
        weights, steps = list(parameters), [gradient_of(p) for p in parameters]
        lots = lots_of(weights, steps)
        if momentum:
            buffers = momentum_buffers(weights, [states[p] for p in parameters])
            steps = after_momentum(lots, steps, buffers, momentum, nesterov=self.order.nesterov)
        mul_(lots, weights, 1.0 - lr * self.group["weight_decay"])
        add_(lots, weights, _turned(steps, [shapes[p] for p in parameters]), alpha=-lr)


def _turned(steps: Sequence[Tensor], shapes: Sequence[_Shape]) -> list[Tensor]:
    """Steps with singular values made alike, those of one shape in one call."""
    alike: dict[object, list[int]] = defaultdict(list)
    for place, (step, shape) in enumerate(zip(steps, shapes, strict=True)):
        alike[shape, step.dtype, step.device].append(place)
    turned = list(steps)
    stacks = []
    for places in alike.values():
        wide = torch.promote_types(steps[places[0]].dtype, torch.float32)
        shape = shapes[places[0]]
        stacks.append(torch.stack([steps[place].reshape(shape) for place in places]).to(wide))
    made = orthogonalize(stacks, _ITERATIONS, [None] * len(stacks))
    for places, found in zip(alike.values(), made, strict=True):
        rows, dtype = shapes[places[0]][1], steps[places[0]].dtype
        lengths = torch.linalg.vector_norm(found, dim=(2, 3), keepdim=True)
        scaled = found * (math.sqrt(rows) / lengths.clamp_min(_SHORTEST))
        for place, one in zip(places, scaled.to(dtype).unbind(0), strict=True):
            turned[place] = one.reshape(steps[place].shape)
    return turned


MATRIX_RULES: dict[MatrixRule | None, type[Muon]] = {"muon": Muon}
