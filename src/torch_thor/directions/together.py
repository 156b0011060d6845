"""Layers that go through their inverse roots together: a stack's, or those of several in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.curvature.tiling import SharedTiles, StackTiles


@dataclass(frozen=True)
class Together:
    """Layers of a stack."""

    stack: LayerStack
    slots: list[int]
    parameters: list[tuple[nn.Parameter, nn.Parameter | None]]  # weight, and bias if that moves

    @property
    def tiles(self) -> StackTiles | None:
        """Where all layers of the stack go in tiles, these."""
        whole = len(self.slots) == len(self.stack.layers)
        return self.stack.tiles if whole and all(self.stack.ready) else None

    def write(self, sources: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """Lays what is preconditioned out as ``[l, k, out, columns]``."""
        return self.stack.matrices.write(
            [(sources[w], None if b is None else sources[b]) for w, b in self.parameters]
        )

    def read(self, matrices: Tensor) -> dict[nn.Parameter, Tensor]:
        """Inverts ``write``."""
        return self.views(self.stack.matrices.read(self.slots, matrices))

    def views(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> dict[nn.Parameter, Tensor]:
        """What weights and biases of the layers have, by parameter; of those that move."""
        found: dict[nn.Parameter, Tensor] = {}
        for (weight, bias), (own, of_bias) in zip(self.parameters, pairs, strict=True):
            found[weight] = own
            if bias is not None and of_bias is not None:
                found[bias] = of_bias
        return found


Member: TypeAlias = tuple[int, Together]  # a stack's number among those that share tiles


class Room:
    """Memory for the products of some stacks that share tiles.

    Attributes:
        sources: ``[l, k, out, columns]`` of each stack.
        directions: The same, after ``precondition``.
        by_parameter: Views of these.
    """

    def __init__(self, shared: SharedTiles, members: Sequence[Member]) -> None:
        self._work = shared.tiles.workspace(members[0][1].stack.matrices.weight_dtype)
        self._into: dict[nn.Parameter, Tensor] = {}
        self.sources: list[Tensor] = []
        self.directions: list[Tensor] = []
        self.by_parameter: dict[nn.Parameter, Tensor] = {}
        for number, one in members:
            wide = [side[number] for side in (self._work.inputs, self._work.outputs)]
            before, after = [self._lay_out(one.stack, flat) for flat in wide]
            pairs = one.stack.matrices.views(before)
            self._into |= one.views(pairs)
            for (_, bias), (_, column) in zip(one.parameters, pairs, strict=True):
                if bias is None and column is not None:
                    column.zero_()
            self.by_parameter |= one.views(one.stack.matrices.views(after))
            geometry = one.stack.geometry
            self.sources.append(before[:, :, : geometry.outputs, : geometry.columns])
            self.directions.append(after[:, :, : geometry.outputs, : geometry.columns])
        self._targets = list(self._into.values())

    @staticmethod
    def _lay_out(stack: LayerStack, matrices: Tensor) -> Tensor:
        return matrices.view(len(stack.layers), -1, *matrices.shape[1:])

    def write(self, sources: Mapping[nn.Parameter, Tensor]) -> None:
        """Takes in what is preconditioned."""
        torch._foreach_copy_(self._targets, [sources[p] for p in self._into])

    def precondition(self) -> None:
        """Finds the directions of what was written."""
        self._work.multiply()


class InTiles:
    """Stacks that share tiles."""

    def __init__(self, shared: SharedTiles, members: Sequence[Member]) -> None:
        self.shared, self.members = shared, members
        # Kept for small layers, whose views cost more than what they move.
        self._kept = Room(shared, members) if shared.are_small else None

    def room(self) -> Room:
        """Memory for a step."""
        return self._kept or Room(self.shared, self.members)


def those_of(stack: LayerStack, moves: Callable[[nn.Parameter], bool]) -> Together:
    """The layers of a stack whose weights move."""
    slots = [slot for slot, layer in enumerate(stack.layers) if moves(layer.weight)]
    layers = [stack.layers[slot] for slot in slots]
    return Together(
        stack,
        slots,
        [
            (one.weight, None if one.bias is None or not moves(one.bias) else one.bias)
            for one in layers
        ],
    )
