"""What steps ask of a card: launches, waits of the host, time in kernels."""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_time import clear, enter, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_report import Report
    from models import Task

# What is looked at, after how many steps.
_STEPS = (
    ("sgd", "", 3),
    ("adamw", "", 3),
    ("muon", "", 3),
    ("thor-plain", "first step", 0),
    ("thor-plain", "no refresh", 5),
    ("thor-interval-1", "all layers refreshed", 5),
)
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemsetAsync")
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")


def _profile(device: torch.device, work: Callable[[], object]) -> tuple[dict[str, Any], str]:
    """Counts and times of one piece of work, and its longest kernels and operations."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(device)
    with profile(activities=activities, acc_events=True) as found:  # or torch warns of cycles
        begin = time.perf_counter()
        work()
        host = time.perf_counter() - begin
        synchronize(device)
        wall = time.perf_counter() - begin
    counts: Counter[str] = Counter()
    kernels: defaultdict[str, list[float]] = defaultdict(list)
    for event in found.events():
        if event.name.startswith("Optimizer."):
            continue  # torch's own mark around a step, seen on the card too
        if event.device_type == DeviceType.CUDA:
            kernels[event.name].append(event.time_range.elapsed_us())
        else:
            counts[event.name] += 1
    result = {
        "launches": sum(n for name, n in counts.items() if name.startswith(_LAUNCHES)),
        "waits": sum(counts[name] for name in _WAITS),
        "copies_to_host": sum(len(t) for name, t in kernels.items() if "DtoH" in name),
        "copies_to_device": sum(len(t) for name, t in kernels.items() if "HtoD" in name),
        "kernels_ms": sum(map(sum, kernels.values())) / 1e3,
        "wall_ms": wall * 1e3,
        "host_ms": host * 1e3,
        "operations": sum(n for name, n in counts.items() if name.startswith("aten::")),
    }
    return result, _longest(found, kernels)


def _longest(found: Any, kernels: dict[str, list[float]]) -> str:
    """The top of kernels and of operations on the host, as lines."""
    ranked = sorted(kernels.items(), key=lambda pair: -sum(pair[1]))[:12]
    lines = ["kernels: µs, times, name"]
    lines += [f"{sum(t):9.1f} {len(t):5d} {name[:150]}" for name, t in ranked]
    averages = sorted(found.key_averages(), key=lambda one: -one.self_cpu_time_total)[:24]
    lines.append("host: µs of its own, times, name")
    lines += [f"{a.self_cpu_time_total:9.1f} {a.count:5d} {a.key[:100]}" for a in averages]
    return "\n".join(lines)


def _waits_by_place(device: torch.device, work: Callable[[], object]) -> Counter[str]:
    """Where the host waits for the card, by torch's own debug mode."""
    if device.type != "cuda":
        work()
        return Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [one for one in caught if "synchroniz" in str(one.message)]
    return Counter("/".join(one.filename.split("/")[-2:]) + f":{one.lineno}" for one in said)


def profile_task(report: Report, title: str, task: Task) -> None:
    """Counts launches and waits of each kind of step, and how long the card was at work in it."""
    device = report.device
    _profile(device, lambda: torch.ones(2, device=device).sum())  # the profiler's own start
    rows: list[tuple[object, ...]] = []
    records: dict[str, Any] = {}
    texts: list[str] = []
    for name, kind, before in _STEPS:
        one = enter(name, task, device)
        for _ in range(before):
            one.step()
        for part, work in (("forward, backward", one.gradients), ("optimizer", one.update)):
            counts, longest = _profile(device, work)
            label = ", ".join(filter(None, (name, kind))) + f": {part}"
            records[label] = counts
            texts.append(f"== {label}\n{counts}\n{longest}\n")
            rows.append((label, *(f"{v:.2f}" if "_ms" in k else v for k, v in counts.items())))
        del one
        clear(device)
    (report.folder / f"profile-{title}.txt").write_text("\n".join(texts))
    report.table(
        (
            "step: part", "launches", "waits", "copies to host", "to device", "kernels, ms",
            "wall, ms (profiled)", "host, ms", "aten calls",
        ),
        rows,
    )  # fmt: skip
    report.record(f"launches, {title}", records)


def find_waits(report: Report, title: str, task: Task) -> None:
    """Says where in the code THOR's steps make the host wait."""
    places: dict[str, dict[str, int]] = {}
    for name, kind, before in _STEPS[3:]:
        one = enter(name, task, report.device)
        for _ in range(before):
            one.step()
        for part, work in (("forward, backward", one.gradients), ("optimizer", one.update)):
            found = dict(_waits_by_place(report.device, work).most_common())
            places[f"{name}, {kind}: {part}"] = found
        del one
    for label, found in places.items():
        where = ", ".join(f"{n} × {place}" for place, n in found.items())
        report.write(f"- {label}: {sum(found.values())} waits; {where}")
    report.record(f"waits, {title}", places)
