"""Times and memory of whole training steps, all optimizers in turn on one card."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpu_check import place_of
from gpu_contestants import BUILDS, UNEVEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_report import Report
    from models import Task

_MIB = 2**20
_COLUMNS = (
    "optimizer", "step, ms", "÷ the first", "÷ muon", "optimizer, ms", "host in it, ms", "range",
    "peak, MiB", "peak ÷ the first", "state, MiB", "last loss",
)  # fmt: skip


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Clock:
    """Milliseconds between marks: the card's own, or the host's where there is no card."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def mark(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """To be asked after a synchronization."""
        return begin.elapsed_time(end) if self._is_cuda else (end - begin) * 1e3


def milliseconds(device: torch.device, work: Callable[[], object], times: int) -> float:
    """The mean of some calls between two synchronizations."""
    clock = Clock(device)
    synchronize(device)
    begin = clock.mark()
    for _ in range(times):
        work()
    end = clock.mark()
    synchronize(device)
    return clock.between(begin, end) / times


@dataclass(frozen=True)
class Amounts:
    """How many steps: some thrown away, then rounds of chunks, fewer where time is short."""

    warm_up: int = 20
    steps: int = 11
    rounds: int = 7


@dataclass
class Contestant:
    """One optimizer with its copy of the model; milliseconds a step of each chunk.

    ``updates`` is the optimizer's part on the device's own clock, ``hosts`` how long the host was
    in it: where both are alike the card waits for launches, or the host for the card.
    """

    name: str
    model: nn.Module
    run: nn.Module
    optimizers: list[Any]
    task: Task
    batch: tuple[Tensor, Tensor]
    chunks: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)
    peak: float = 0.0
    loss: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.batch[0].device

    def gradients(self) -> None:
        """Forward and backward."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.loss = self.task.loss(self.run, self.batch)
        self.loss.backward()

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def step(self) -> None:
        self.gradients()
        self.update()

    def chunk(self, steps: int) -> None:
        """Takes some steps between two synchronizations."""
        clock, host, marks = Clock(self.device), 0.0, []
        synchronize(self.device)
        begin = clock.mark()
        for _ in range(steps):
            self.gradients()
            entered, start = time.perf_counter(), clock.mark()
            self.update()
            marks.append((start, clock.mark()))
            host += time.perf_counter() - entered
        synchronize(self.device)
        self.chunks.append(clock.between(begin, marks[-1][1]) / steps)
        self.updates.append(sum(clock.between(*pair) for pair in marks) / steps)
        self.hosts.append(host * 1e3 / steps)

    def typical(self, times: list[float]) -> float:
        """The median over chunks; the mean where not all steps are alike."""
        return statistics.fmean(times) if self.name in UNEVEN else statistics.median(times)

    def over(self, other: Contestant) -> float:
        """Its step over another's of the same round, which drift of the machine hits alike."""
        if self.name in UNEVEN:
            return sum(self.chunks) / sum(other.chunks)
        return statistics.median(a / b for a, b in zip(self.chunks, other.chunks, strict=True))

    def state(self) -> float:
        """Optimizer state in MiB."""
        return sum(_bytes(o.state_dict()) for o in self.optimizers) / _MIB


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def enter(name: str, task: Task, device: torch.device, *, compiled: bool = False) -> Contestant:
    """Builds one contestant."""
    model = task.model().to(device)
    # On a CPU only to try the lines: its compiler takes minutes.
    backend = "inductor" if device.type == "cuda" else "eager"
    run = torch.compile(model, backend=backend) if compiled else model
    return Contestant(name, model, run, BUILDS[name](model), task, task.batch(device))


def _warmed_up(name: str, task: Task, device: torch.device, steps: int, **how: bool) -> Contestant:
    """A contestant that took its first steps alone, which show its peak memory."""
    clear(device)
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    one = enter(name, task, device, **how)
    one.chunk(steps)
    if device.type == "cuda":
        one.peak = (torch.cuda.max_memory_allocated(device) - before) / _MIB
    return one


def time_task(
    report: Report,
    title: str,
    task: Task,
    names: list[str],
    amounts: Amounts,
    seconds: float,
    *,
    compiled: bool = False,
) -> None:
    """Measures the contestants on a task in turn, for some seconds, and writes their table."""
    device, begin = report.device, time.perf_counter()

    def left() -> float:
        return min(seconds - (time.perf_counter() - begin), report.left)

    # Convolutions choose their algorithms and workspaces once; nobody is to pay for that.
    enter("sgd", task, device).chunk(3)
    contestants, absent = [], {}
    for name in names:
        # A third of the time is for rounds, which all need.
        if left() < seconds / 3:
            absent[name] = f"left out: {left():.0f} s left"
            continue
        try:
            contestants.append(_warmed_up(name, task, device, amounts.warm_up, compiled=compiled))
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            absent[name] = place_of(error)
    gc.collect()
    gc.disable()
    taken, slowest = 0, 0.0
    while taken < amounts.rounds and (taken < 2 or left() > slowest):
        started = left()
        for one in contestants:
            if not taken:
                for times in (one.chunks, one.updates, one.hosts):
                    times.clear()
            one.chunk(amounts.steps)
        taken, slowest = taken + 1, max(slowest, started - left())
    gc.enable()
    report.write(f"{taken} rounds of {amounts.steps} steps\n")
    _write(report, title, contestants, absent)
    contestants.clear()
    clear(device)


def _write(
    report: Report, title: str, contestants: list[Contestant], absent: dict[str, str]
) -> None:
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    muon = next((one for one in contestants if one.name == "muon"), None)
    for one in contestants:
        step, update, host = (one.typical(t) for t in (one.chunks, one.updates, one.hosts))
        ratio, peak = one.over(contestants[0]), one.peak / (contestants[0].peak or 1)
        over_muon = one.over(muon) if muon else float("nan")
        spread = (max(one.chunks) - min(one.chunks)) / step
        loss = float("nan") if one.loss is None else one.loss.item()
        figures = (
            f"{step:.2f}", f"{ratio:.3f}", f"{over_muon:.3f}", f"{update:.2f}", f"{host:.2f}",
            f"{spread:.0%}", f"{one.peak:.0f}", f"{peak:.3f}", f"{one.state():.0f}", f"{loss:.3g}",
        )  # fmt: skip
        rows.append((one.name, *figures))
        records.append({**dict(zip(_COLUMNS, rows[-1], strict=True)), "chunks, ms": one.chunks})
    rows += absent.items()
    records += [{"optimizer": name, "absent": why} for name, why in absent.items()]
    report.table(_COLUMNS, rows)
    report.record(title, records)
