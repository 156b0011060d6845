"""The clock that counts training only, and the memory that a run needed."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Stopwatch:
    """Adds up the time of the sections that it runs; evaluation and saving stay outside.

    Args:
        device: Device whose queued work must be finished before the clock is read.
        seconds: Time already counted, by the part of the run before a resume.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device = device
        self._counted = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Time counted so far."""
        if self._since is None:
            return self._counted
        return self._counted + time.perf_counter() - self._since

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the enclosed block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the enclosed block out of the one that runs around it."""
        self._stop()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def _stop(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._counted = self.seconds
        self._since = None


@cache
def wake(device: torch.device) -> None:
    """Takes one step of a small convnet, once for a process: threads and libraries begin there.

    Otherwise the first run of a process would pay for all that come after it.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        images = torch.ones(16, 1, 8, 8, device=device)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters())
        functional.cross_entropy(model(images), images.new_zeros(16, dtype=torch.long)).backward()
        optimizer.step()


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of peak memory, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_REFS.exists():
        with suppress(OSError):  # some containers forbid it; the mark then covers the whole process
            _CLEAR_REFS.write_text("5", encoding="ascii")  # 5: reset the high-water mark, proc(5)


def peak_memory_mb(device: torch.device) -> float:
    """Returns the largest memory since the last reset, in MiB.

    On a GPU it is what torch allocated there; on a CPU the resident memory of the process, of its
    whole life on systems that cannot reset the mark.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "darwin" else 2**10)
