"""What the engine asks of other ranks, and the answer of a process that is alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from torch_thor.distributed.wire import Traffic
from torch_thor.options.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from torch_thor.distributed.buckets import Part
    from torch_thor.distributed.pooling import LayerStatistics
    from torch_thor.linalg.factorize import Solutions, Solver

T = TypeVar("T")
BUILD_ALIKE = "Build the same model and optimizer on all of them."


class Communicator:
    """Everything that involves other ranks; each call is a collective, in the same order on all.

    This one has no others, so everything is what it is.

    Args:
        unasked: Whether the user named no group: then a default group that is initialised
            later, too late for this optimizer, is an error.

    Attributes:
        rank: This process's number in the group.
        size: W, processes in the group.
        traffic: Counted messages.
    """

    rank: int = 0
    size: int = 1

    def __init__(self, *, unasked: bool = False) -> None:
        self.traffic = Traffic()
        self._unasked = unasked

    def agree(self, what: str, description: str, remedy: str = BUILD_ALIKE) -> None:
        """Raises ``StateMismatchError`` on all ranks unless all give one description.

        Args:
            what: What is compared, for the error.
            description: This rank's.
            remedy: What to do, for the error.
        """

    def first(self, value: Callable[[], T] | None) -> T | None:
        """Returns the value of the first rank that has one; only that rank computes it."""
        return None if value is None else value()

    def any(self, flag: bool) -> bool:  # noqa: FBT001 (as the built-in)
        """Returns whether the flag is set on any rank."""
        return flag

    def all(self, flags: list[bool]) -> list[bool]:
        """Returns of each flag whether it is set on all ranks."""
        return flags

    def total(self, what: str, numbers: Tensor) -> Tensor:  # noqa: ARG002
        """Returns the sum over ranks of a few numbers; one shape on all ranks."""
        return numbers

    def adopt(self, name: str, value: T, *, valid: bool) -> T:  # noqa: ARG002
        """Returns the value of the first rank whose own is valid."""
        return value

    def pool(self, step: int, statistics: list[LayerStatistics]) -> list[LayerStatistics]:  # noqa: ARG002
        """Returns what all ranks together know of the due layers.

        Raises:
            StateMismatchError: Where ranks are about to do different things, or a group of several
                has come up too late.
        """
        if self._unasked and default_size() > 1:
            raise StateMismatchError(
                f"The optimizer was built before torch.distributed had its {default_size()} "
                "ranks, so its curvature would not be shared. Call init_process_group first."
            )
        return statistics

    def reduce(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Yields the sum over ranks of each part, in order."""
        return (part.compute() for part in parts)

    def solve(self, stacks: Sequence[Tensor], solver: Solver) -> Solutions:
        """Factorizes stacks ``[b, s, s]`` of blocks that are the same on all ranks."""
        return [solver.kernel(stack) for stack in stacks]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces gradients by their means over ranks, where the user asked for that."""


def default_size() -> int:
    """Processes in the default group; one where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
