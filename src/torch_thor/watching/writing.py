"""From a report to a writer, and from whatever wraps an optimizer to what there is to watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch_thor.curvature.surface import HasCurvature
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from torch_thor.curvature.report import StatisticsReport


class Writer(Protocol):
    """What ``torch.utils.tensorboard.SummaryWriter`` is, as far as it is needed."""

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> object:
        """Takes a number at a step."""


def write(statistics: StatisticsReport, writer: Writer, step: int | None = None) -> None:
    """Writes statistics to TensorBoard: a card a quantity, a curve a layer.

    Args:
        statistics: What ``optimizer.statistics()`` returned; reading it waits for the device.
        writer: A ``SummaryWriter``, or what has its ``add_scalar``.
        step: Where they stand; ``None`` takes the optimizer's count of steps.

    Example:
        >>> if step % 50 == 0:
        ...     write(optimizer.statistics(), writer, step)
    """
    at = statistics.steps if step is None else step
    for name, value in statistics.scalars().items():
        writer.add_scalar(name, value, at)


def watched(optimizer: object) -> HasCurvature | None:
    """Returns the THOR, KFAC, EKFAC or Preconditioner in an optimizer's wraps; ``None``: none is.

    Accelerate, Lightning and others keep the optimizer that they wrap as ``.optimizer``.
    """
    seen: list[object] = []
    while optimizer is not None and not isinstance(optimizer, HasCurvature):
        seen.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None)
        if any(optimizer is one for one in seen):
            return None
    return optimizer


def checked_every(every: int) -> int:
    """Returns a number of steps between two reports, or raises ``InvalidOptionError``."""
    given: object = every
    valid = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    require("every", every, valid, "a number of steps, >= 1")
    return every
