"""Times and memory of whole training steps, all optimizers in turn on one card."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gpu_contestants import BUILDS, GROWING

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from gpu_report import Report
    from models import Task

_MIB = 2**20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class Contestant:
    """One optimizer with its copy of the model; seconds a step of each chunk.

    ``updates`` is the optimizer's part on the device's own clock, ``hosts`` how long the host was
    in it: where both are alike the card waits for launches, or the host for the card.
    """

    name: str
    model: nn.Module
    run: nn.Module
    optimizers: list[Optimizer]
    device: torch.device
    chunks: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)
    peak: float = 0.0
    loss: float = 0.0

    def chunk(self, task: Task, batch: tuple[Tensor, Tensor], steps: int) -> None:
        """Takes some steps between two synchronizations."""
        is_cuda, marks, host, on_cpu = self.device.type == "cuda", [], 0.0, 0.0
        loss = torch.zeros((), device=self.device)
        synchronize(self.device)
        begin = time.perf_counter()
        for _ in range(steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss = task.loss(self.run, batch)
            loss.backward()
            if is_cuda:
                pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                marks.append(pair)
                pair[0].record()
            middle = time.perf_counter()
            for optimizer in self.optimizers:
                optimizer.step()
            host += time.perf_counter() - middle
            if is_cuda:
                pair[1].record()
            else:
                on_cpu = host
        synchronize(self.device)
        self.chunks.append((time.perf_counter() - begin) / steps)
        on_device = sum(start.elapsed_time(end) for start, end in marks) / 1e3
        self.updates.append((on_device or on_cpu) / steps)
        self.hosts.append(host / steps)
        self.loss = loss.item()

    def amortized(self, times: list[float]) -> float:
        """The median over chunks; the mean where refreshes fall into some of them alone."""
        return statistics.fmean(times) if self.name in GROWING else statistics.median(times)

    def state(self) -> float:
        """Optimizer state in MiB."""
        return sum(_bytes(o.state_dict()) for o in self.optimizers) / _MIB


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


@dataclass(frozen=True)
class Amounts:
    """How many steps: some thrown away, then rounds of chunks.

    A growing interval is timed in every round; the others, whose steps are all alike, in the first
    ``rounds_of_others`` of them.
    """

    warm_up: int = 20
    steps: int = 11
    rounds: int = 8
    rounds_of_others: int = 5


def _enter(
    name: str, task: Task, batch: tuple[Tensor, Tensor], warm_up: int, *, compiled: bool
) -> Contestant:
    """Builds one contestant and takes its first steps alone, which show its peak memory."""
    device = batch[0].device
    is_cuda = device.type == "cuda"
    clear(device)
    before = torch.cuda.memory_allocated(device) if is_cuda else 0
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    model = task.model().to(device)
    optimizers = BUILDS[name](model)
    run = torch.compile(model) if compiled else model
    one = Contestant(name, model, run, optimizers, device)
    one.chunk(task, batch, warm_up)
    if is_cuda:
        one.peak = (torch.cuda.max_memory_allocated(device) - before) / _MIB
    for times in (one.chunks, one.updates, one.hosts):
        times.clear()
    return one


def time_task(
    report: Report,
    title: str,
    task: Task,
    names: list[str],
    amounts: Amounts,
    *,
    compiled: bool = False,
) -> None:
    """Measures the contestants on a task in turn and writes their table."""
    device = report.device
    batch = task.batch(device)
    # Convolutions choose their algorithms and workspaces once; nobody is to pay for that.
    _enter("sgd", task, batch, 3, compiled=False)
    contestants = []
    for name in names:
        if report.left < 0:
            report.write(f"{name}: left out, no time left\n")
            continue
        try:
            contestants.append(_enter(name, task, batch, amounts.warm_up, compiled=compiled))
        except Exception as error:  # noqa: BLE001 - the others can still be measured
            report.write(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}\n")
    gc.collect()
    gc.disable()
    taken = 0
    for turn in range(amounts.rounds):
        if taken >= 2 and report.left < 0:
            break
        for one in contestants:
            if one.name in GROWING or turn < amounts.rounds_of_others:
                one.chunk(task, batch, amounts.steps)
        taken += 1
    gc.enable()
    _write(report, title, contestants, taken * amounts.steps)
    del contestants
    clear(device)


def _write(report: Report, title: str, contestants: list[Contestant], steps: int) -> None:
    first = contestants[0]
    base = first.amortized(first.chunks)
    rows, records = [], []
    for one in contestants:
        step, update, host = (one.amortized(t) for t in (one.chunks, one.updates, one.hosts))
        spread = (max(one.chunks) - min(one.chunks)) / step
        values = {
            "optimizer": one.name, "step_ms": step * 1e3, "ratio": step / base,
            "optimizer_ms": update * 1e3, "host_ms": host * 1e3, "spread": spread,
            "peak_mib": one.peak, "state_mib": one.state(), "loss": one.loss,
            "chunks_ms": [t * 1e3 for t in one.chunks],
        }  # fmt: skip
        records.append(values)
        rows.append(
            (
                one.name,
                f"{step * 1e3:.2f}",
                f"{step / base:.3f}",
                f"{update * 1e3:.2f}",
                f"{host * 1e3:.2f}",
                f"{spread:.1%}",
                f"{one.peak:.0f}",
                f"{one.peak / (first.peak or 1):.3f}",
                f"{values['state_mib']:.0f}",
                f"{one.loss:.3g}",
            )
        )
    report.write(f"growing intervals over {steps} steps\n")
    report.table(
        (
            "optimizer",
            "step, ms",
            f"÷ {first.name}",
            "optimizer, ms",
            "host in it, ms",
            "chunks' range",
            "peak, MiB",
            "÷",
            "state, MiB",
            "last loss",
        ),
        rows,
    )
    report.record(title, records)
