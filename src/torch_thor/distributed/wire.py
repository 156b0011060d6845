"""Messages between ranks: counted, named, and with a time limit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from torch_thor.options.errors import CollectiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from torch_thor.options.distributed import Distributed

T = TypeVar("T")


@dataclass
class Traffic:
    """What a rank has sent since its communicator was built.

    Args:
        messages: Collectives.
        bytes: Sizes of what was summed or gathered. A ring moves (W - 1) / W of a sum twice,
            of a gathered message once.
    """

    messages: int = 0
    bytes: int = 0


class Wire:
    """The collectives of one process group.

    Args:
        options: Group and time limit.
        device: Where the model lives.
        traffic: Counts what is sent.

    Attributes:
        rank: This process's number in the group.
        size: W, processes in the group.
        device: Where messages are laid out: gloo's on the CPU, others beside the model.
    """

    def __init__(self, options: Distributed, device: torch.device, traffic: Traffic) -> None:
        self._group, self._timeout, self._traffic = options.group, options.timeout, traffic
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        on_cpu = dist.get_backend(self._group) == "gloo"
        self.device = torch.device("cpu") if on_cpu else device

    def numbers(self, *values: float) -> Tensor:
        """A message of a few numbers, in float64."""
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def sum(self, name: str, message: Tensor) -> Tensor:
        """Sums a message over the ranks."""
        return self.start_sum(name, message)()

    def start_sum(self, name: str, message: Tensor) -> Callable[[], Tensor]:
        """Begins to sum a message in place; the result is called for."""
        self._count(message)
        wait = self._start(name, lambda: dist.all_reduce(message, group=self._group, async_op=True))

        def land() -> Tensor:
            wait()
            return message

        return land

    def start_coarse_sum(self, name: str, message: Tensor) -> Callable[[], Tensor]:
        """Begins to sum a message of a half type: it is rounded once before and once after.

        Every rank sums a share of the entries, in float32, and sends the sum to all: the
        traffic of a ring, whose sums would be rounded at every rank.
        """
        self._count(message)
        share = -(-len(message) // self.size)
        padded = torch.nn.functional.pad(message, (0, share * self.size - len(message)))
        summands = torch.empty_like(padded)
        group = self._group
        wait = self._start(
            name, lambda: dist.all_to_all_single(summands, padded, group=group, async_op=True)
        )

        def land() -> Tensor:
            wait()
            own = summands.view(self.size, share).float().sum(0).to(message.dtype)
            whole = torch.empty_like(padded)
            self._gather(name, list(whole.view(self.size, share).unbind(0)), own)
            return whole[: len(message)]

        return land

    def gather(self, name: str, message: Tensor) -> list[Tensor]:
        """Returns every rank's message; all have one shape."""
        parts = [torch.empty_like(message) for _ in range(self.size)]
        self._count(message)
        self._gather(name, parts, message)
        return parts

    def _gather(self, name: str, parts: list[Tensor], own: Tensor) -> None:
        self._start(name, lambda: dist.all_gather(parts, own, group=self._group, async_op=True))()

    def broadcast_object(self, name: str, value: T, source: int) -> T:
        """Returns what rank ``source`` of the group has; any object that can be pickled."""
        box: list[T] = [value]
        sender = source if self._group is None else dist.get_global_rank(self._group, source)
        self._traffic.messages += 1
        try:
            dist.broadcast_object_list(box, src=sender, group=self._group)
        except RuntimeError as error:
            raise self._failure(name, error) from error
        return box[0]

    def _count(self, message: Tensor) -> None:
        self._traffic.messages += 1
        self._traffic.bytes += message.numel() * message.element_size()

    def _start(self, name: str, launch: Callable[[], dist.Work | None]) -> Callable[[], None]:
        """Launches a collective; the result waits for it, within the time limit."""

        def wait() -> None:
            try:
                if work is not None:
                    work.wait(timedelta(seconds=self._timeout))
            except RuntimeError as error:
                raise self._failure(name, error) from error

        try:
            work = launch()
        except RuntimeError as error:
            raise self._failure(name, error) from error
        return wait

    def _failure(self, name: str, error: RuntimeError) -> CollectiveError:
        return CollectiveError(
            f"Rank {self.rank} of {self.size}: the collective {name!r} failed, or took longer "
            f"than {self._timeout:g} s: another rank has died, or runs other steps. "
            "Restart from the last checkpoint, or raise Distributed(timeout=...). "
            f"torch.distributed says: {error}"
        )
