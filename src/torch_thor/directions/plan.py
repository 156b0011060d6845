"""From gradients to preconditioned directions, all layers of a model at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_thor.directions.banded import banded_layers
from torch_thor.directions.controls import LengthControl
from torch_thor.directions.lengths import Lengths, row_cut, rows_of
from torch_thor.directions.together import InTiles, those_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.curvature.tiling import SharedTiles
    from torch_thor.directions.controls import Control
    from torch_thor.directions.together import Member, Together


class DirectionPlan:
    """The way of some layers through their curvature, found once for the steps that all take it.

    Args:
        stacks: The model's curvature; a layer that has none yet keeps its source.
        moves: Says whether a parameter takes part.
        control: Norm control.

    Attributes:
        banded: Large layers, which go some rows at a time.
        goes_together: Says whether a parameter goes with all others.
    """

    def __init__(
        self,
        stacks: Sequence[LayerStack],
        moves: Callable[[nn.Parameter], bool],
        control: Control,
    ) -> None:
        self.banded = banded_layers(stacks, moves, control)
        in_bands = {parameter for large in self.banded for parameter in large.layer.parameters}

        def together(parameter: nn.Parameter) -> bool:
            return moves(parameter) and parameter not in in_bands

        self.goes_together = together
        found = [one for one in (those_of(stack, together) for stack in stacks) if one.slots]
        in_tiles: dict[SharedTiles, list[Member]] = defaultdict(list)
        for one in found:
            if one.tiles is not None:
                in_tiles[one.tiles.shared].append((one.tiles.number, one))
        self._tiled = [InTiles(shared, members) for shared, members in in_tiles.items()]
        self._alone = [one for one in found if one.tiles is None]
        self._chosen = [*(one for own in self._tiled for _, one in own.members), *self._alone]
        self._control = control
        self._lengths = lengths_of(control, self._chosen)
        self._positions = [one.stack.positions for one in self._chosen]

    def renew(self) -> None:
        """Takes over what a refresh has changed; to be called before ``take``."""
        for one in self._tiled:
            one.shared.renew()

    def take(
        self,
        sources: Mapping[nn.Parameter, Tensor],
        rates: Mapping[nn.Parameter, float],
        found_inf: Tensor | None = None,
    ) -> dict[nn.Parameter, Tensor]:
        """Preconditions gradients or momenta, all together, and sets each layer's length.

        Args:
            sources: What is preconditioned, by parameter.
            rates: The weights' learning rates, if the control needs them.
            found_inf: One where sources are not finite, if only the device knows.

        Returns:
            A direction for every source; memory that the next call may write to.
        """
        rooms = [one.room() for one in self._tiled]
        for room in rooms:
            room.write(sources)
            room.precondition()
        written = [one.write(sources) for one in self._alone]
        packed = [matrices for room in rooms for matrices in room.sources] + written
        raw = [matrices for room in rooms for matrices in room.directions]
        # The sources of the others have served: their memory takes the directions.
        memory = raw + written
        raw += [
            one.stack.direction(one.slots, source)
            for one, source in zip(self._alone, written, strict=True)
        ]
        raw = self._control.turn(raw, self._positions)
        _scale(raw, self._factors(raw, packed, rates, found_inf), memory)
        directions = dict(sources)
        for room in rooms:
            directions.update(room.by_parameter)
        for one, matrices in zip(self._alone, written, strict=True):
            directions.update(one.read(matrices))
        return directions

    def _factors(
        self,
        raw: list[Tensor],
        packed: list[Tensor],
        rates: Mapping[nn.Parameter, float],
        found_inf: Tensor | None,
    ) -> Sequence[Tensor | float]:
        """What each stack's directions are multiplied by."""
        if self._lengths is not None and raw:
            return self._lengths.factors(raw, packed, found_inf)
        return alike(self._control, self._chosen, raw, packed, rates)


def lengths_of(control: Control, chosen: Sequence[Together]) -> Lengths | None:
    """What gives layers their lengths; ``None`` where the control has none for each."""
    if not isinstance(control, LengthControl):
        return None
    return Lengths(
        control,
        [row_cut(one.stack, control) for one in chosen],
        [rows_of(one.stack, one.slots, control) for one in chosen],
        [one.stack.held for one in chosen],
    )


def alike(
    control: Control,
    chosen: Sequence[Together],
    raw: list[Tensor],
    packed: list[Tensor],
    rates: Mapping[nn.Parameter, float],
) -> Sequence[Tensor | float]:
    """What each stack's directions are multiplied by where no layer has a length of its own."""
    if not raw:
        return []
    needed = control.needs_rates
    own = [[rates[w] for w, _ in one.parameters] if needed else [] for one in chosen]
    factor = control.factor(raw, packed, own)
    return [factor.to(one) if isinstance(factor, Tensor) else factor for one in raw]


def _scale(
    directions: Sequence[Tensor], factors: Sequence[Tensor | float], memory: Sequence[Tensor]
) -> None:
    """Writes factors · directions to memory, which may be the directions'."""
    inside: list[tuple[Tensor, Tensor]] = []
    for direction, factor, out in zip(directions, factors, memory, strict=True):
        if direction is not out:
            torch.mul(direction, factor, out=out)
        elif isinstance(factor, Tensor):
            inside.append((direction, factor))
        elif factor != 1.0:
            direction.mul_(factor)
    if inside:
        torch._foreach_mul_([one for one, _ in inside], [factor for _, factor in inside])
