"""The kinds of norm control, a class each: how long a preconditioned layer's step is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from torch_thor import linalg
from torch_thor.directions.orthogonal import orthogonalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.options.norm_control import NormControl, NormControlKind


_LEAST_TILE = 128  # smaller ones cost the model more steps


class Control:
    """Leaves directions as they are."""

    needs_whole_layer: ClassVar[bool] = False  # they change by more than a number a layer or a row
    needs_rates: ClassVar[bool] = False  # learning rates enter

    def turn(
        self,
        directions: list[Tensor],
        positions: Sequence[int | None],  # noqa: ARG002 (for those that turn)
    ) -> list[Tensor]:
        """Changes where directions point.

        Args:
            directions: One ``[l, k, out, columns]`` a stack.
            positions: Rows of a batch of each stack, where that is known.
        """
        return directions

    def factor(
        self,
        directions: Sequence[Tensor],  # noqa: ARG002 (for those that weigh directions)
        sources: Sequence[Tensor],  # noqa: ARG002
        rates: Sequence[Sequence[float]],  # noqa: ARG002
    ) -> float | Tensor:
        """What all directions are multiplied by, where none has a length of its own.

        Args:
            directions: One ``[l, k, out, columns]`` a stack.
            sources: What was preconditioned, same shapes.
            rates: Learning rates of each stack, of each layer, where they are needed.
        """
        return 1.0


class KLClip(Control):
    """All directions alike by min(1, √(limit / Σ lr² ⟨direction, source⟩))."""

    needs_whole_layer = True
    needs_rates = True

    def __init__(self, options: NormControl) -> None:
        self._limit = options.limit

    def factor(
        self,
        directions: Sequence[Tensor],
        sources: Sequence[Tensor],
        rates: Sequence[Sequence[float]],
    ) -> float | Tensor:
        """The clip."""
        parts = []
        for direction, source, own in zip(directions, sources, rates, strict=True):
            dtype = torch.promote_types(direction.dtype, torch.float32)
            products = (direction.to(dtype) * source.to(dtype)).sum((1, 2, 3))
            parts.append(products @ linalg.vector(own, dtype, products.device).square())
        total = torch.stack([part.to(parts[0].device) for part in parts]).sum()
        return torch.where(total > 0, (self._limit / total).sqrt().clamp_max(1.0), 1.0)


class LengthControl(Control):
    """Gives each layer's direction a length."""

    def __init__(self, options: NormControl) -> None:
        self.options = options

    def fixed_length(self, rows: int) -> float | None:
        """The length of a direction of so many rows; ``None``: that of what was preconditioned."""
        raise NotImplementedError


class Graft(LengthControl):
    """The length of what was preconditioned."""

    def fixed_length(self, rows: int) -> None:  # noqa: ARG002 (they have no say)
        """The source's."""
        return


class RootMeanSquare(LengthControl):
    """√rows · limit: an entry's root mean square is limit / √columns, as Muon's."""

    def fixed_length(self, rows: int) -> float:
        """The same in every step."""
        return math.sqrt(rows) * self.options.limit


class Spectral(RootMeanSquare):
    """The same length, once singular values have been made alike."""

    needs_whole_layer = True

    def turn(self, directions: list[Tensor], positions: Sequence[int | None]) -> list[Tensor]:
        """Makes singular values alike."""
        return orthogonalize(directions, self.options.iterations, [*map(self._tile, positions)])

    def _tile(self, positions: int | None) -> int | None:
        """Rows of a tile of a layer with so many rows in a batch."""
        said = self.options.tile
        if said != "auto":
            return said
        # Four steps of m rows take 16 m² n products, a backward and its forward 6 m n of each row.
        return None if positions is None else max(positions // 4, _LEAST_TILE)


CONTROLS: dict[NormControlKind, type[KLClip | LengthControl]] = {
    "graft": Graft,
    "kl_clip": KLClip,
    "rms": RootMeanSquare,
    "spectral": Spectral,
}


def control_of(options: NormControl | None) -> Control:
    """Returns what an option asks for; ``None`` asks for nothing."""
    return Control() if options is None else CONTROLS[options.kind](options)
