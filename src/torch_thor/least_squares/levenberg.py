"""Damping by trust: how λ follows the ratio of the loss's change to the model's."""

from __future__ import annotations

from dataclasses import dataclass

_MOST = 1e30
_FASTEST = 16.0


@dataclass
class LevenbergMarquardt:
    """λ by the ratio ρ of changes, without thresholds (Nielsen 1999).

    A step that does as the model says divides λ by 3, one that does half of it keeps λ. Refused
    ones multiply it by 2, 4, 8, 16, 16 …

    Attributes:
        damping: λ.
        growth: What the next refusal multiplies it by.
        adaptive: Whether it follows at all.
        floor: λ is never smaller: rounding alone moves the curvature by more.
    """

    damping: float
    growth: float = 2.0
    adaptive: bool = True
    floor: float = 0.0

    def accept(self, ratio: float) -> None:
        """Follows a step that was taken."""
        if self.adaptive:
            self._set(self.damping * min(max(1 / 3, 1 - (2 * ratio - 1) ** 3), _FASTEST))
        self.growth = 2.0

    def refuse(self) -> None:
        """Trusts the model less, however adaptive: the same λ would be refused again."""
        self._set(self.damping * self.growth)
        self.growth = min(2 * self.growth, _FASTEST)

    def _set(self, value: float) -> None:
        self.damping = min(max(value, self.floor), _MOST)
