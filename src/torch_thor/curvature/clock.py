"""When a layer is due: pure in (step, intervals), so that all ranks agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch_thor.options.checks import AT_LEAST_ONE, require_number
from torch_thor.options.schedules import value_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch_thor.options.curvature import Intervals


@dataclass
class RefreshClock:
    """Tells which layers are due: cycles of growing length, layers spread inside one.

    A cycle begins at ``start`` and takes ``length`` steps. A layer whose share is f is
    due at ``start + floor(f * length)``; without staggering every share is 0. In the
    first cycle all layers are due at once, because no layer has an inverse yet.
    """

    start: int = 0
    length: int = 0  # 0 before the first cycle
    first: bool = True  # whether the current cycle is

    def advance(self, step: int, interval: float) -> None:
        """Begins a cycle of ``interval`` steps where the current one is over."""
        if self.length == 0 or step >= self.start + self.length:
            self.first = self.length == 0
            self.start, self.length = step, _steps(interval)

    def due(self, step: int, share: float = 0.0) -> bool:
        """Says whether a layer with this share of the cycle is due at ``step``."""
        offset = 0 if self.first else int(share * self.length)
        return step == self.start + offset

    def of_length(self, interval: float) -> RefreshClock:
        """Returns the clock as if another interval had been said when its cycle began."""
        return replace(self, length=_steps(interval)) if self.length else self


def _steps(interval: float) -> int:
    return max(1, round(interval))


class Calendar:
    """The clocks of factors and inverses, wound by the intervals that the user said.

    Args:
        said: Numbers or schedules.
        began: The step from which intervals count.
        clocks: When factors and inverses are due; those of a run that begins, if there are none.
    """

    def __init__(
        self, said: Intervals, began: int = 0, clocks: Iterable[RefreshClock] = ()
    ) -> None:
        self._said = said
        self.began = began
        self.clocks = tuple(clocks) or (RefreshClock(), RefreshClock())
        self._coming: tuple[int, list[float]] = -1, []

    def at(self, began: int, clocks: Iterable[RefreshClock] = ()) -> Calendar:
        """Returns one with other clocks, each with the interval that it has by these schedules."""
        own = [
            clock.of_length(self._intervals(clock.start - began)[place])
            for place, clock in enumerate(clocks)
        ]
        return Calendar(self._said, began, own)

    def _intervals(self, passed: int) -> list[float]:
        """Intervals of factors and inverses, so many steps after the first; checked."""
        said = (self._said.factors, self._said.inverses)
        found = [value_at(one, passed, "interval") for one in said]
        for interval in found:
            require_number(f"interval at step {passed}", interval, AT_LEAST_ONE)
        return found

    def check(self, step: int) -> None:
        """Raises, before a step has changed anything, where its end would meet a bad interval."""
        self._coming = step, self._intervals(step - self.began)

    def advance(self, step: int) -> None:
        """Begins the cycles that begin at a step."""
        known, intervals = self._coming
        if known != step:
            intervals = self._intervals(step - self.began)
        for clock, interval in zip(self.clocks, intervals, strict=True):
            clock.advance(step, interval)

    def any_due(self, step: int, share: float) -> bool:
        """Says whether factors or inverses of a layer with this share are due."""
        return any(clock.due(step, share) for clock in self.clocks)

    def inverses_due(self, step: int, share: float) -> bool:
        """Says whether the inverses of a layer with this share are due."""
        return self.clocks[1].due(step, share)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to hold."""
        return {"began": self.began, "clocks": [asdict(clock) for clock in self.clocks]}
