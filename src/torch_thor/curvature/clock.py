"""When a layer is due: pure in (step, intervals), so that all ranks agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.options.checks import AT_LEAST_ONE, require_number
from torch_thor.options.schedules import value_at

if TYPE_CHECKING:
    from torch_thor.options.curvature import Intervals


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


Clocks = tuple[RefreshClock, RefreshClock]


def fresh_clocks() -> Clocks:
    """The clocks of factors and inverses of a run that begins."""
    return RefreshClock(), RefreshClock()


class Calendar:
    """The clocks of factors and inverses, wound by the intervals that the user said.

    Args:
        said: Numbers or schedules.

    Attributes:
        began: The step from which intervals count.
        clocks: When factors and inverses are due.
    """

    def __init__(self, said: Intervals) -> None:
        """Begins at step 0."""
        self._said = said
        self._coming: tuple[int, int, list[float]] = -1, 0, []
        self.restart(0, fresh_clocks())

    def restart(self, began: int, clocks: Clocks) -> None:
        """Takes over other clocks."""
        self.began, self.clocks = began, clocks

    def intervals(self, step: int, began: int) -> list[float]:
        """Returns the intervals of factors and inverses that begin at a step.

        Args:
            step: The step.
            began: The step from which they count.

        Raises:
            InvalidOptionError: For what is no interval.
        """
        passed = step - began
        said = (self._said.factors, self._said.inverses)
        found = [value_at(one, passed, "interval") for one in said]
        for interval in found:
            require_number(f"interval at step {passed}", interval, AT_LEAST_ONE)
        return found

    def check(self, step: int) -> None:
        """Raises, before a step has changed anything, where its end would meet a bad interval."""
        self._coming = step, self.began, self.intervals(step, self.began)

    def advance(self, step: int) -> None:
        """Begins the cycles that begin at a step."""
        known, began, intervals = self._coming
        if (known, began) != (step, self.began):
            intervals = self.intervals(step, self.began)
        for clock, interval in zip(self.clocks, intervals, strict=True):
            clock.advance(step, interval)

    def any_due(self, step: int, share: float) -> bool:
        """Says whether factors or inverses of a layer with this share are due."""
        return any(clock.due(step, share) for clock in self.clocks)

    def inverses_due(self, step: int, share: float) -> bool:
        """Says whether the inverses of a layer with this share are due."""
        return self.clocks[1].due(step, share)
