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
from thor_bench.scaling.scaled_models import CHECK, RULES
from thor_bench.training.ranks import open_ranks
from torch_thor import Intervals

INTERVAL = 4
_PROBES = (1 << 10, 1 << 23)
_REPEATS = 15


@dataclass(frozen=True)
class Measured:
    """What a number of ranks really did."""

    ranks: int
    messages: dict[int, float]  # seconds of a sum over the ranks, by its bytes: two, small first
    steps: dict[str, float]  # mean seconds of a step of each optimizer, refreshes included
    sent: dict[str, float]  # bytes of statistics and traces, by optimizer, in a refresh
    profile: Profile | None  # of a rank that is alone


ADAPTER = TypeAdapter(Measured)


def _seconds_of_sum(size: int) -> float:
    message = torch.zeros(size // 4)
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        dist.all_reduce(message)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _train(name: str, cycles: int, *, many: bool) -> tuple[float, float]:
    """Returns mean seconds of a step over whole cycles, and bytes sent in a refresh."""
    intervals = Intervals(INTERVAL, INTERVAL)
    trainer = Trainer(CHECK, name, intervals, torch.device("cpu"), many=many)
    sent, times = [], []
    for _ in range(1 + cycles):  # the first one warms up
        if many:
            dist.barrier()
        begun = time.perf_counter()
        for _ in range(INTERVAL):
            trainer.step()
        times.append(time.perf_counter() - begun)
        sent.append(0 if trainer.curved is None else trainer.curved.traffic.bytes)
    return statistics.median(times[1:]) / INTERVAL, (sent[-1] - sent[0]) / cycles


def main(path: Path, cycles: int) -> None:
    """Measures over some cycles of refreshes, and lets the first rank write."""
    with open_ranks("cpu") as ranks:
        many = ranks.size > 1
        messages = {size: _seconds_of_sum(size) for size in _PROBES} if many else {}
        trained = {name: _train(name, cycles, many=many) for name in RULES}
        measured = Measured(
            ranks=ranks.size,
            messages=messages,
            steps={name: seconds for name, (seconds, _) in trained.items()},
            sent={name: sent for name, (_, sent) in trained.items()},
            profile=None if many else measure_profile(CHECK, torch.device("cpu"), cycles=cycles),
        )
        if ranks.is_first:
            path.write_bytes(ADAPTER.dump_json(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
