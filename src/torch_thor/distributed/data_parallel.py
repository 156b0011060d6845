"""Ranks that hold the same model and different samples."""

from __future__ import annotations

import hashlib
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from torch_thor.distributed import evidence as pooled
from torch_thor.distributed.communicator import Communicator, Local, Part, default_size
from torch_thor.distributed.gradients import average_gradients
from torch_thor.distributed.inversion import Inverter
from torch_thor.distributed.packing import pack_triangles, raise_diagonals, unpack_triangles
from torch_thor.errors import CollectiveError, StateMismatchError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch_thor.distributed.evidence import Evidence
    from torch_thor.distributed.options import Distributed
    from torch_thor.inverses import Inverses, Solutions

# A bucket travels while the next one is computed; DistributedDataParallel's are as large.
_BUCKET_BYTES = 4 << 20
# Fits the square of a float64's integers, see ``_same_step``.
_CHECK_MASK = (1 << 20) - 1


class _Flight:
    """A bucket on its way: parts of one type and device, summed as one flat tensor.

    Args:
        ranks: The communicator that sends it.
        name: What it is, for errors.
        wire: Type in which it travels; ``None`` leaves it as it is.
    """

    def __init__(self, ranks: DataParallel, name: str, wire: torch.dtype | None) -> None:
        """Starts empty."""
        self._ranks, self._name, self._wire = ranks, name, wire
        self._pieces: list[Tensor] = []
        self._shapes: list[tuple[torch.Size, bool]] = []
        self.bytes = 0

    def takes(self, values: Tensor) -> bool:
        """Whether a part can travel with those that are here."""
        kind = (values.dtype, values.device)
        fits = not self._pieces or kind == (self._pieces[0].dtype, self._pieces[0].device)
        return fits and self.bytes < _BUCKET_BYTES

    def add(self, values: Tensor, *, symmetric: bool) -> None:
        """Packs a part."""
        piece = (pack_triangles(values) if symmetric else values).flatten()
        self._pieces.append(piece)
        self._shapes.append((values.shape, symmetric))
        self.bytes += piece.numel() * piece.element_size()

    def depart(self) -> None:
        """Sends the bucket."""
        self._dtype, self._device = self._pieces[0].dtype, self._pieces[0].device
        flat = torch.cat(self._pieces)
        self._counts = [len(piece) for piece in self._pieces]
        self._pieces.clear()
        wire = self._wire or flat.dtype
        flat = flat.to(self._ranks.device, wire)
        # A sum in half precision over many ranks would be too coarse.
        self._narrow = torch.finfo(wire).bits < 32
        self._land = (self._ranks.start_coarse_sum if self._narrow else self._ranks.start_sum)(
            self._name, flat
        )

    def parts(self) -> Iterator[Tensor]:
        """Waits for the bucket and unpacks it."""
        flat = self._land().to(self._device, self._dtype)
        for piece, (shape, symmetric) in zip(
            torch.split(flat, self._counts), self._shapes, strict=True
        ):
            if not symmetric:
                yield piece.view(shape)
                continue
            packed = piece.view(*shape[:-2], -1)
            matrices = unpack_triangles(packed, shape[-1])
            yield raise_diagonals(matrices, torch.bfloat16) if self._narrow else matrices


class DataParallel(Communicator):
    """Averages statistics over the ranks of a process group.

    Args:
        options: See ``Distributed``.
        device: Where the model lives.

    Attributes:
        device: Where messages are laid out: gloo's on the CPU, others beside the model.
    """

    def __init__(self, options: Distributed, device: torch.device) -> None:
        """Looks up the group."""
        super().__init__()
        self.options = options
        self.group = options.group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        on_cpu = dist.get_backend(self.group) == "gloo"
        self.device = torch.device("cpu") if on_cpu else device
        self._inverter = Inverter(self, options.inversion)

    def agree(self, what: str, description: str) -> None:
        """Compares a digest with all ranks'."""
        digest = hashlib.sha256(description.encode()).digest()
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.device)
        digests = self.gather(f"comparison of {what}", own)
        others = [rank for rank, other in enumerate(digests) if not torch.equal(other, digests[0])]
        if others:
            raise StateMismatchError(
                f"The ranks differ in {what}: rank 0 and ranks {others[:8]} (this is rank "
                f"{self.rank} of {self.size}). Build the same model and optimizer on all of them."
            )

    def first(self, value: Callable[[], int] | None) -> int | None:
        """Asks who has a value, and lets the first of them compute and send it."""
        have = self.gather("who has statistics", self._message([value is not None]))
        owners = [rank for rank, flag in enumerate(have) if bool(flag.item())]
        if not owners:
            return None
        own = value() if value is not None and owners[0] == self.rank else 0
        return int(self.sum("choice of the split", self._message([own])).item())

    def pool(self, step: int, evidence: list[Evidence]) -> list[Evidence]:
        """Sums traces, counts and flags in one small message."""
        if not evidence:
            return evidence
        name = f"traces of {len(evidence)} layers, step {step}"
        names = ",".join(one.name for one in evidence)
        check = zlib.crc32(f"{step}:{names}".encode()) & _CHECK_MASK
        message = torch.cat([self._message([check, check**2]), pooled.write(evidence, self.device)])
        total = self.sum(name, message).cpu()
        # All ranks sent one number exactly if its variance is zero.
        if float(total[0]) ** 2 != self.size * float(total[1]):
            raise StateMismatchError(
                f"At step {step} the ranks refresh different layers (this is rank {self.rank} "
                f"of {self.size}). Take, skip, freeze and thaw on all ranks alike."
            )
        return pooled.read(evidence, total[2:])

    def reduce(self, parts: Iterable[Part]) -> Iterator[Tensor]:
        """Sends the parts in buckets, each while the next one is computed."""
        flights: list[_Flight] = []
        for part in parts:
            values = part.compute()
            if not flights or not flights[-1].takes(values):
                if flights:
                    flights[-1].depart()
                number = f"statistics, bucket {len(flights)}"
                flights.append(_Flight(self, number, self.options.wire))
            flights[-1].add(values, symmetric=part.symmetric)
        if flights:
            flights[-1].depart()
        for flight in flights:
            yield from flight.parts()

    def solve(self, stacks: Sequence[Tensor], inverses: Inverses) -> Solutions:
        """Factorizes on all ranks, or each block on one, whichever is faster."""
        return self._inverter.solve(stacks, inverses)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Averages in one message for each type of parameter."""
        if self.options.reduce_gradients:
            average_gradients(
                parameters, self.size, lambda flat: self.sum("gradients", flat.to(self.device))
            )

    def sum(self, name: str, message: Tensor) -> Tensor:
        """Sums a message over the ranks."""
        return self.start_sum(name, message)()

    def start_sum(self, name: str, message: Tensor) -> Callable[[], Tensor]:
        """Begins to sum a message in place; the result is called for."""
        self._count(message)
        wait = self._start(name, lambda: dist.all_reduce(message, group=self.group, async_op=True))

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
        wait = self._start(
            name,
            lambda: dist.all_to_all_single(summands, padded, group=self.group, async_op=True),
        )

        def land() -> Tensor:
            wait()
            own = summands.view(self.size, share).float().sum(0).to(message.dtype)
            whole = torch.empty_like(padded)
            parts = list(whole.view(self.size, share).unbind(0))
            self._start(
                name, lambda: dist.all_gather(parts, own, group=self.group, async_op=True)
            )()
            return whole[: len(message)]

        return land

    def gather(self, name: str, message: Tensor) -> list[Tensor]:
        """Returns every rank's message; all have one shape."""
        parts = [torch.empty_like(message) for _ in range(self.size)]
        self._count(message)
        self._start(
            name, lambda: dist.all_gather(parts, message, group=self.group, async_op=True)
        )()
        return parts

    def _message(self, numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)

    def _count(self, message: Tensor) -> None:
        self.traffic.messages += 1
        self.traffic.bytes += message.numel() * message.element_size()

    def _start(self, name: str, launch: Callable[[], dist.Work | None]) -> Callable[[], None]:
        """Launches a collective; the result waits for it, within the time limit."""

        def wait() -> None:
            try:
                if work is not None:
                    work.wait(timedelta(seconds=self.options.timeout))
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
            f"than {self.options.timeout:g} s: another rank has died, or runs other steps. "
            "Restart from the last checkpoint, or raise Distributed(timeout=...). "
            f"torch.distributed says: {error}"
        )


def communicator_for(options: Distributed, device: torch.device) -> Communicator:
    """Returns ``Local`` for a process that is alone in its group, else ``DataParallel``.

    Args:
        options: See ``Distributed``.
        device: Where the model lives.

    Raises:
        InvalidOptionError: Where this process is not in the group.
    """
    if options.group is None and default_size() == 1:
        return Local(unasked=True)
    rank = dist.get_rank(options.group)
    require("group", options.group, rank >= 0, "a group that this process is a member of")
    if dist.get_world_size(options.group) == 1:
        return Local(unasked=False)
    return DataParallel(options, device)
