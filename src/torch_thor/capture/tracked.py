"""A weight that is preconditioned, and what its calls have said since the last step."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from torch_thor.capture.autograd import inside_backward
from torch_thor.capture.ledger import Ledger
from torch_thor.layers.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from torch_thor.layers import Geometry, LayerAdapter
    from torch_thor.layers.shards import Shard

    Identity: TypeAlias = tuple[nn.Module, str]


@dataclass(eq=False)
class TrackedLayer:
    """A weight that is preconditioned, with the module that uses it.

    Args:
        name: Qualified name of the module, or of its part.
        module: The module.
        adapter: Geometry of its type.
        geometry: Shape of the weight as matrices.
        weight: The trained weight.
        bias: The trained bias, where there is one.
        part: Name below the module's, where the module has several weights.
        share: Where in an interval the layer refreshes, in [0, 1).
        armed: Whether its calls count now.
        called: Whether its forward ran since the last step.
        obstacle: Why the statistics since the last step can't be had; empty where they can.
        cause: Why it has no curvature, once that was said.
        listened: Whether a step without statistics is strange: no empty call, no new layer,
            no state that was loaded since.
        group: Number of the current forward pass since the last step.
        group_has_gradient: Whether a gradient of that pass has arrived.
    """

    name: str
    module: nn.Module
    adapter: LayerAdapter[Any]
    geometry: Geometry
    weight: nn.Parameter
    bias: nn.Parameter | None
    part: str = ""
    share: float = 0.0
    armed: bool = False
    called: bool = False
    obstacle: str = ""
    cause: str = ""
    listened: bool = False
    group: int = 0
    group_has_gradient: bool = False

    @cached_property
    def ledger(self) -> Ledger:
        """The calls whose gradient stands in ``weight.grad``."""
        return Ledger(self.weight)

    @cached_property
    def shard(self) -> Shard | None:
        """The rows that this rank owns, where it doesn't own all."""
        return shard_of(self.weight)

    @cached_property
    def kept(self) -> Geometry:
        """Shape of the matrices that this rank keeps."""
        shard = self.shard
        return self.geometry if shard is None else replace(self.geometry, outputs=shard.chunk)

    @property
    def curvature(self) -> str:
        """Its kind, in words."""
        kind = self.geometry.structure.curvature
        return kind if self.adapter.sums_rows else f"{kind} of the weight that it makes"

    @property
    def identity(self) -> Identity:
        """What stays when names and parameters change."""
        return self.module, self.part

    def has_weight_of(self, other: TrackedLayer) -> bool:
        """Whether it is another one's layer with the same weight."""
        return self.weight is other.weight and self.adapter is other.adapter

    def is_as(self, other: TrackedLayer) -> bool:
        """Whether it is another one's layer with the same parameters."""
        alike = self.weight is other.weight and self.bias is other.bias
        return alike and self.geometry == other.geometry and self.adapter is other.adapter

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight, and bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    # Not traced into compiled models: it asks autograd's engine.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def begin_call(self) -> None:
        """Notes that the layer runs while it is armed, and whether that opens a new micro-batch."""
        self.called = True
        if inside_backward():
            # A checkpointed segment is being recomputed: no new micro-batch.
            return
        self.ledger.review()
        if self.group_has_gradient:
            self.group, self.group_has_gradient = self.group + 1, False

    @contextmanager
    def obstructed(self) -> Iterator[None]:
        """Inside, an error costs the layer its statistics of this step, and the user nothing."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a forward that works without us has to work)
            said = str(error).strip().partition("\n")[0]
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            self.obstacle = f"its call can't be understood ({kind}{said})"

    def forget(self) -> None:
        """Drops what its calls have said."""
        self.ledger.clear()
        self.called, self.obstacle, self.listened = False, "", True
        self.group, self.group_has_gradient = 0, False
