"""Decisions: when a layer is due, and whether its curvature is worth a refresh.

Everything here is pure in (step, traces, own state), so that every rank of a
distributed run takes the same decision from the same reduced traces.
"""

from __future__ import annotations

from dataclasses import dataclass


def relative_change(current: float, reference: float) -> float:
    """Returns Δ of eq. 8; ``inf`` where there is no reference yet or it is zero."""
    if reference == 0.0:
        return float("inf")
    return abs(abs(current) - abs(reference)) / abs(reference)


@dataclass
class RefreshClock:
    """Tells which layers are due: cycles of growing length, layers spread inside one.

    A cycle begins at ``start`` and takes ``length`` steps. A layer whose share is f is
    due at ``start + floor(f * length)``; without staggering every share is 0. In the
    first cycle all layers are due at once, because no layer has an inverse yet.

    Args:
        start: Step at which the current cycle began.
        length: Steps of the current cycle; 0 before the first one.
        first: Whether the current cycle is the first one.
    """

    start: int = 0
    length: int = 0
    first: bool = True

    @staticmethod
    def cycle(interval: float) -> int:
        """Returns the steps of a cycle."""
        return max(1, round(interval))

    def advance(self, step: int, interval: float) -> None:
        """Begins a cycle of ``interval`` steps where the current one is over."""
        if self.length == 0 or step >= self.start + self.length:
            self.first = self.length == 0
            self.start = step
            self.length = self.cycle(interval)

    def due(self, step: int, share: float = 0.0) -> bool:
        """Says whether a layer with this share of the cycle is due at ``step``."""
        offset = 0 if self.first else int(share * self.length)
        return step == self.start + offset
