"""One process of ``thor scale --check``: really trains the small model, alone or among ranks.

``python -m thor_bench.scaling.worker FILE CYCLES``, under torchrun for several ranks.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from thor_bench.scaling.measure import Trainer, measure_profile
from thor_bench.scaling.model import Profile
from thor_bench.scaling.tasks import CHECK, RULES
from thor_bench.training.ranks import open_ranks
from torch_thor import KFAC, THOR, Distributed, Intervals

INTERVAL = 4
_PROBES = (1 << 10, 1 << 23)
_REPEATS = 15


@dataclass(frozen=True)
class Measured:
    """What a number of ranks really did.

    Attributes:
        ranks: Their number.
        messages: Seconds of a sum over the ranks, of each of ``sizes`` bytes.
        sizes: Bytes of the messages.
        steps: Mean seconds of a step of each optimizer, refreshes included.
        sent: Bytes of statistics and traces that each optimizer sent in a refresh.
        profile: What one rank needs, measured where it is alone.
    """

    ranks: int
    sizes: tuple[int, ...]
    messages: tuple[float, ...]
    steps: dict[str, float]
    sent: dict[str, float]
    profile: Profile | None


ADAPTER = TypeAdapter(Measured)


def _messages(size: int) -> float:
    """Returns the median seconds of a sum of a message."""
    message = torch.zeros(size // 4)
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        dist.all_reduce(message)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _steps(name: str, cycles: int, *, many: bool) -> tuple[float, float]:
    """Returns mean seconds of a step over whole cycles, and bytes sent in a refresh."""
    shared = Distributed(inversion="replicate")
    intervals = Intervals(INTERVAL, INTERVAL)
    device = torch.device("cpu")
    trainer = Trainer(CHECK, name, intervals, device, distributed=shared, many=many)
    for _ in range(INTERVAL):
        trainer.step()
    before = _sent(trainer)
    times = []
    for _ in range(cycles):
        if many:
            dist.barrier()
        begun = time.perf_counter()
        for _ in range(INTERVAL):
            trainer.step()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) / INTERVAL, (_sent(trainer) - before) / cycles


def _sent(trainer: Trainer) -> int:
    optimizer = trainer.optimizer
    if not isinstance(optimizer, THOR | KFAC):
        return 0
    return optimizer.traffic.bytes


def main(path: Path, cycles: int) -> None:
    """Measures over some cycles of refreshes, and lets the first rank write."""
    with open_ranks("cpu") as ranks:
        many = ranks.size > 1
        probes = tuple(_messages(size) for size in _PROBES) if many else ()
        found = {name: _steps(name, cycles, many=many) for name in RULES}
        measured = Measured(
            ranks=ranks.size,
            sizes=_PROBES if many else (),
            messages=probes,
            steps={name: seconds for name, (seconds, _) in found.items()},
            sent={name: sent for name, (_, sent) in found.items()},
            profile=None if many else measure_profile(CHECK, torch.device("cpu"), cycles=cycles),
        )
        if ranks.is_first:
            path.write_bytes(ADAPTER.dump_json(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
