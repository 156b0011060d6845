"""Ranks that hold the same model and different samples."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from torch_thor.distributed import pooling as pooled
from torch_thor.distributed.buckets import Part, sum_in_buckets
from torch_thor.distributed.communicator import BUILD_ALIKE, Communicator, T, default_size
from torch_thor.distributed.gradients import GradientAverage
from torch_thor.distributed.inversion import Inverter
from torch_thor.distributed.wire import Wire
from torch_thor.options.errors import StateMismatchError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch_thor.distributed.pooling import LayerStatistics
    from torch_thor.linalg.factorize import Solutions, Solver
    from torch_thor.options.distributed import Distributed

# Squares of such numbers, and sums of them over ranks, are exact in float64.
_CHECK_MASK = (1 << 20) - 1


class DataParallel(Communicator):
    """Averages statistics over the ranks of a process group; the model lives on ``device``."""

    def __init__(self, options: Distributed, device: torch.device) -> None:
        super().__init__()
        self.options = options
        self._wire = Wire(options, device, self.traffic)
        self.rank, self.size = self._wire.rank, self._wire.size
        self._inverter = Inverter(self._wire, options.inversion)
        wire, remedy = self._wire, "Freeze, thaw and add parameters on all ranks alike."
        self._gradients = GradientAverage(
            self.size,
            lambda flat: wire.sum("gradients", flat.to(wire.device)),
            lambda described: self.agree("the parameters that train", described, remedy),
        )

    def agree(self, what: str, description: str, remedy: str = BUILD_ALIKE) -> None:
        """Compares a digest with all ranks'."""
        digest = hashlib.sha256(description.encode()).digest()
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self._wire.device)
        digests = self._wire.gather(f"comparison of {what}", own)
        others = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
        if others:
            raise StateMismatchError(
                f"The ranks differ in {what}: rank 0 and ranks {others[:8]} (this is rank "
                f"{self.rank} of {self.size}). {remedy}"
            )

    def first(self, value: Callable[[], T] | None) -> T | None:
        """Asks who has a value, and lets the first of them compute and send it."""
        self._meet("the first statistics")
        owner = self._first_with("rank with statistics", value is not None)
        if owner is None:
            return None
        own = value() if value is not None and owner == self.rank else None
        return self._wire.broadcast_object("choice of the split", own, owner)

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Sums the flags."""
        return bool(self._wire.sum("flag of all ranks", self._wire.numbers(flag)).item())

    def all(self, flags: list[bool]) -> list[bool]:
        """Sums the flags."""
        counts = self._wire.sum("success of all ranks", self._wire.numbers(*flags)).tolist()
        return [count == self.size for count in counts]

    def total(self, what: str, numbers: Tensor) -> Tensor:
        """Sums them in float64, whatever type factors travel in."""
        message = numbers.to(self._wire.device, torch.float64).contiguous()
        return self._wire.sum(what, message).to(numbers)

    def adopt(self, name: str, value: T, *, valid: bool) -> T:
        """Sends the first valid value to all."""
        owner = self._first_with(f"rank with {name}", valid)
        return value if owner is None else self._wire.broadcast_object(name, value, owner)

    def _first_with(self, name: str, flag: bool) -> int | None:  # noqa: FBT001
        flags = self._wire.gather(name, self._wire.numbers(flag))
        return next((rank for rank, other in enumerate(flags) if bool(other.item())), None)

    def pool(self, step: int, statistics: list[LayerStatistics]) -> list[LayerStatistics]:
        """Sums traces, counts and flags in one small message."""
        if not statistics:
            return statistics
        names = ", ".join(one.name for one in statistics)
        self._meet(f"the refresh of step {step}: {names}")
        name = f"traces of {len(statistics)} layers, step {step}"
        total = self._wire.sum(name, pooled.write(statistics, self._wire.device))
        return pooled.read(statistics, total.cpu())

    def _meet(self, plan: str) -> None:
        """Raises on all ranks unless they are about to do the same.

        Messages of different lengths end the process under gloo, and hang under nccl.
        """
        check = zlib.crc32(plan.encode()) & _CHECK_MASK
        total, squares = self._wire.sum(plan, self._wire.numbers(check, check**2)).tolist()
        # All ranks sent one number exactly if its variance is zero.
        if total**2 != self.size * squares:
            raise StateMismatchError(
                f"The ranks are about to do different things; rank {self.rank} of {self.size} "
                f"comes to {plan}. Step, skip, freeze and thaw on all ranks alike."
            )

    def reduce(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Sends the parts in buckets, each while the next one is computed."""
        return sum_in_buckets(parts, self._wire, self.options.wire)

    def solve(self, stacks: Sequence[Tensor], solver: Solver) -> Solutions:
        """Factorizes on all ranks, or each block on one, whichever is faster."""
        return self._inverter.solve(stacks, solver)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Averages in one message for each type of parameter."""
        if self.options.reduce_gradients:
            self._gradients.average(parameters)


def communicator_for(options: Distributed, device: torch.device) -> Communicator:
    """Returns what reaches the ranks of a group, where there are others.

    Raises:
        InvalidOptionError: Where this process is not in the group.
    """
    if options.group is None and default_size() == 1:
        return Communicator(unasked=True)
    rank = dist.get_rank(options.group)
    require("group", options.group, rank >= 0, "a group that this process is a member of")
    if dist.get_world_size(options.group) == 1:
        return Communicator()
    return DataParallel(options, device)
