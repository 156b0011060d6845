"""Inverting on every rank, or each block on one rank: which is faster, and both of them."""

from __future__ import annotations

import heapq
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.distributed.packing import pack_triangles, packed_size, unpack_triangles
from torch_thor.linalg.factorize import solve, solve_all
from torch_thor.linalg.timing import inversion_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torch_thor.distributed.wire import Wire
    from torch_thor.linalg.factorize import Solution, Solutions, Solver
    from torch_thor.options.distributed import Inversion

_LOG = logging.getLogger(__name__)
# Block sizes whose inversion is measured; others lie between, or follow the cube of the size.
_SIZES = (16, 64, 256)
_PROBE_BYTES = (1 << 10, 1 << 20)
_PROBE_REPEATS = 3


@dataclass(frozen=True)
class Profile:
    """What rank 0 measured; all ranks decide by it.

    Args:
        seconds: Time to invert one block of each of ``_SIZES``.
        latency: Seconds of a gather of nothing.
        per_byte: Seconds for each byte that a rank contributes to a gather.
    """

    seconds: tuple[float, ...]
    latency: float
    per_byte: float

    def inversion(self, size: int) -> float:
        """Seconds to invert one block: linear between measured sizes on a log-log scale."""
        below = max((n for n, s in enumerate(_SIZES) if s <= size), default=0)
        if below == len(_SIZES) - 1:
            return self.seconds[below] * (size / _SIZES[below]) ** 3
        if size <= _SIZES[0]:
            return self.seconds[0]
        (x0, x1), (y0, y1) = _SIZES[below : below + 2], self.seconds[below : below + 2]
        share = math.log(size / x0) / math.log(x1 / x0)
        return float(y0 * (y1 / y0) ** share)

    def gather(self, size: float) -> float:
        """Seconds of a gather to which each rank contributes ``size`` bytes."""
        return self.latency + self.per_byte * size


class Inverter:
    """Solves stacks of blocks for all ranks, as ``Distributed.inversion`` says."""

    def __init__(self, wire: Wire, choice: Inversion) -> None:
        self._wire = wire
        self._choice = choice
        self._profile: Profile | None = None
        self._said: bool | None = None

    def solve(self, stacks: Sequence[Tensor], solver: Solver) -> Solutions:
        """Factorizes ``[b, s, s]`` stacks; the answer is the same on all ranks."""
        if self._choice != "replicate":
            profile = self._profile or self._measure(stacks[0].device, solver.power)
            self._profile = profile
            costs = [profile.inversion(stack.shape[-1]) for stack in stacks for _ in stack]
            owners = place(costs, self._wire.size)
            sizes = [_result_bytes(stack, solver) for stack in stacks for _ in stack]
            if self._choice == "owners" or self._pays(profile, costs, sizes, owners):
                return self._share(stacks, solver, _by_stack(owners, stacks))
        solutions = solve_all(stacks, solver)
        return [_as_sent(solution) for solution in solutions] if solver.symmetric else solutions

    def _pays(
        self, profile: Profile, costs: list[float], sizes: list[int], owners: list[int]
    ) -> bool:
        """Whether owners and a gather are faster than inverting everything everywhere.

        Args:
            profile: What was measured.
            costs: Seconds to invert each block.
            sizes: Bytes of each block's result.
            owners: Who inverts it.
        """
        ranks, alone = self._wire.size, sum(costs)
        size = longest_load(sizes, owners, ranks)
        shared = longest_load(costs, owners, ranks) + profile.gather(size)
        pays = shared < alone
        _LOG.log(
            logging.DEBUG if pays == self._said else logging.INFO,
            "%s %d blocks: %.2g s on every rank, %.2g s by owners with %d bytes to gather",
            "Owners invert and send" if pays else "Every rank inverts all of",
            len(costs),
            alone,
            shared,
            size,
        )
        self._said = pays
        return pays

    def _measure(self, device: torch.device, power: float) -> Profile:
        """Measures network and inversion; rank 0's numbers count."""
        seconds = []
        for size in _PROBE_BYTES:
            message = torch.zeros(size, dtype=torch.uint8, device=self._wire.device)
            times = []
            for _ in range(_PROBE_REPEATS):
                begin = time.perf_counter()
                # The copy to the CPU waits for the device.
                self._wire.gather("measurement of the network", message)[-1][-1].cpu()
                times.append(time.perf_counter() - begin)
            seconds.append(min(times))
        per_byte = max(seconds[1] - seconds[0], 0.0) / (_PROBE_BYTES[1] - _PROBE_BYTES[0])
        numbers = [seconds[0], per_byte]
        if self._wire.rank == 0:
            numbers += inversion_times(_SIZES, device, power)
        else:
            numbers = [0.0] * (len(numbers) + len(_SIZES))
        message = torch.tensor(numbers, dtype=torch.float64, device=self._wire.device)
        latency, per_byte, *inversions = self._wire.sum("measured profile", message).tolist()
        return Profile(tuple(inversions), latency, per_byte)

    def _share(
        self, stacks: Sequence[Tensor], solver: Solver, owners: list[list[int]]
    ) -> Solutions:
        """Inverts this rank's blocks and gathers everyone's."""
        places = [
            [[n for n, owner in enumerate(owned) if owner == rank] for owned in owners]
            for rank in range(self._wire.size)
        ]
        mine = places[self._wire.rank]
        found = [
            solve(stack[chosen], solver.kernel) for stack, chosen in zip(stacks, mine, strict=True)
        ]
        solutions: Solutions = [
            (tuple(r.new_empty(len(s), *r.shape[1:]) for r in results), good.new_empty(len(s)))
            for s, (results, good) in zip(stacks, found, strict=True)
        ]
        kinds = dict.fromkeys((stack.dtype, stack.device) for stack in stacks)
        for kind in kinds:
            alike = [n for n, s in enumerate(stacks) if (s.dtype, s.device) == kind]
            layout = [
                [_Slot(solutions[n], chosen[n], solver.symmetric) for n in alike]
                for chosen in places
            ]
            self._gather(layout, [found[n] for n in alike], kind)
        return solutions

    def _gather(
        self,
        layout: list[list[_Slot]],
        found: Solutions,
        kind: tuple[torch.dtype, torch.device],
    ) -> None:
        """Sends this rank's results of one type and writes everyone's to where they belong."""
        dtype, device = kind
        longest = max(sum(slot.entries for slot in slots) for slots in layout)
        own = torch.zeros(longest, dtype=dtype, device=device)
        pieces = [
            slot.pack(solution)
            for slot, solution in zip(layout[self._wire.rank], found, strict=True)
        ]
        packed = torch.cat(pieces)
        own[: len(packed)] = packed
        message = own.to(self._wire.device)
        gathered = self._wire.gather("inverses of the blocks' owners", message)
        for slots, flat in zip(layout, gathered, strict=True):
            counts = [slot.entries for slot in slots]
            values = flat[: sum(counts)].to(device)
            for slot, piece in zip(slots, torch.split(values, counts), strict=True):
                slot.unpack(piece)


@dataclass(frozen=True)
class _Slot:
    """Where one rank's results of one stack belong: at its ``places`` of the whole solution."""

    solution: tuple[tuple[Tensor, ...], Tensor]
    places: list[int]
    symmetric: bool

    @property
    def entries(self) -> int:
        return len(self.places) * sum(self._widths())

    def _widths(self) -> list[int]:
        """Entries of each result of one block, the mark of success last."""
        shapes = [result.shape[1:] for result in self.solution[0]]
        return [packed_size(s[0]) if self.symmetric else s.numel() for s in shapes] + [1]

    def pack(self, found: tuple[tuple[Tensor, ...], Tensor]) -> Tensor:
        results, good = found
        flat = [pack_triangles(r) if self.symmetric else r.flatten(1) for r in results]
        return torch.cat([*flat, good.to(results[0].dtype).unsqueeze(1)], dim=1).flatten()

    def unpack(self, piece: Tensor) -> None:
        if not self.places:
            return
        widths = self._widths()
        *parts, good = torch.split(piece.view(len(self.places), -1), widths, dim=1)
        results, mask = self.solution
        for result, part in zip(results, parts, strict=True):
            shape = result.shape[1:]
            square = unpack_triangles(part, shape[0]) if self.symmetric else part
            result[self.places] = square.reshape(-1, *shape)
        mask[self.places] = good.squeeze(1) > 0


def _as_sent(solution: Solution) -> Solution:
    """The bits that owners would have sent, so that times measured for "auto" change nothing."""
    results, good = solution
    return tuple(unpack_triangles(pack_triangles(r), r.shape[-1]) for r in results), good


def _by_stack(values: list[int], stacks: Sequence[Tensor]) -> list[list[int]]:
    parts, first = [], 0
    for stack in stacks:
        parts.append(values[first : first + len(stack)])
        first += len(stack)
    return parts


def _result_bytes(stack: Tensor, solver: Solver) -> int:
    """Bytes of one block's result."""
    size = stack.shape[-1]
    entries = packed_size(size) if solver.symmetric else size * size + size
    return (entries + 1) * stack.element_size()


def place(costs: Sequence[float], ranks: int) -> list[int]:
    """Gives every job to a rank: the dearest first, each to the rank with the least to do.

    The longest load is at most 4/3 of the best possible (Graham 1969). The same costs give
    the same owners everywhere.
    """
    loads = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda j: (-costs[j], j)):
        load, rank = heapq.heappop(loads)
        owners[job] = rank
        heapq.heappush(loads, (load + costs[job], rank))
    return owners


def longest_load(costs: Sequence[float], owners: Sequence[int], ranks: int) -> float:
    """Cost of the rank that has the most to do."""
    loads = [0.0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return max(loads)
