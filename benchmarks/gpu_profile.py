"""What THOR's steps ask of a card: launches, waits of the host, kernels; graphs, compiling."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_check import place_of
from gpu_contestants import BUILDS
from gpu_time import clear, synchronize
from torch_thor import THOR, Refresh

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from gpu_report import Report
    from models import Task

_EVERY = 10
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


class _Training:
    """A model with an optimizer, whose forward and backward can be asked for alone."""

    def __init__(self, task: Task, device: torch.device, optimizer: Any = None) -> None:
        self.task, self.batch = task, task.batch(device)
        self.model: nn.Module = task.model().to(device)
        build = optimizer or (
            lambda model: THOR(
                model,
                lr=1e-4,
                interval=_EVERY,
                refresh=Refresh(stagger=False, inverse_dtype="auto"),
            )
        )
        self.optimizer = build(self.model)

    def pass_both_ways(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model, self.batch)
        loss.backward()
        return loss

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.pass_both_ways()
            self.optimizer.step()


def _training_of(task: Task, device: torch.device, name: str) -> _Training:
    build = (lambda model: BUILDS[name](model)[0]) if name != "thor" else None
    return _Training(task, device, build)


def profile_task(report: Report, title: str, task: Task) -> None:
    """Counts launches and waits of SGD, AdamW and of THOR's kinds of steps."""
    device = report.device
    _profile(device, lambda: torch.ones(2, device=device).sum())  # the profiler's own start
    rows, records, texts = [], {}, []
    for name, kind, before in (
        ("sgd", "plain", 3),
        ("adamw", "plain", 3),
        ("thor", "first", 0),
        ("thor", "plain", 5),
        ("thor", "refresh of all layers", _EVERY),
    ):
        training = _training_of(task, device, name)
        training.steps(before)
        for part, work in (
            ("forward, backward", training.pass_both_ways),
            ("optimizer", training.optimizer.step),
        ):
            counts, longest = _profile(device, work)
            label = f"{name}, {kind}: {part}"
            records[label] = counts
            texts.append(f"== {label}\n{counts}\n{longest}\n")
            rows.append((label, *(f"{v:.2f}" if "_ms" in k else v for k, v in counts.items())))
        del training
        clear(device)
    (report.folder / f"profile-{title}.txt").write_text("\n".join(texts))
    report.table(
        (
            "step: part",
            "launches",
            "waits",
            "copies to host",
            "to device",
            "kernels, ms",
            "wall, ms (profiled)",
            "host, ms",
            "aten calls",
        ),
        rows,
    )
    report.record(f"launches of {title}", records)


def find_waits(report: Report, title: str, task: Task) -> None:
    """Says where in the code THOR's steps make the host wait."""
    training, places = _Training(task, report.device), {}
    for kind, before in (("first", 0), ("plain", 4), ("refresh of all layers", 5)):
        training.steps(max(0, before - (kind != "first")) if kind == "plain" else before)
        for part, work in (
            ("forward, backward", training.pass_both_ways),
            ("optimizer", training.optimizer.step),
        ):
            places[f"{kind}: {part}"] = dict(_waits_by_place(report.device, work).most_common())
    for name, found in places.items():
        where = ", ".join(f"{n} × {place}" for place, n in found.items())
        report.write(f"- {name}: {sum(found.values())} waits; {where}")
    report.record(f"waits of {title}", places)


def try_elsewhere(report: Report, kind: str, arguments: list[str], limit: float) -> None:
    """Runs ``try_graph`` or ``try_compile`` in a process of its own, which may hang or break."""
    command = [sys.executable, sys.argv[0], "--probe", kind, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        said = done.stdout.strip() or f"nothing; stderr: {done.stderr.strip()[-600:]}"
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        said = f"{so_far.strip()}\n- stopped after {limit:.0f} s"
    report.write(said)
    report.record(f"tried: {kind}", said)


def _say(text: str) -> None:
    sys.stdout.write(f"- {text}\n")
    sys.stdout.flush()


def _said(error: BaseException) -> str:
    """The first cause: what ends a capture afterwards only says that something went wrong."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return place_of(error)


def _milliseconds(device: torch.device, work: Callable[[], object], times: int = 20) -> float:
    work()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / times * 1e3


def _rarely(**options: Any) -> Callable[[nn.Module], THOR]:
    """THOR that refreshes at the first step and then not again."""
    return lambda model: THOR(model, lr=1e-4, interval=10**6, **options)


_TRIED: dict[str, Callable[[nn.Module], Any]] = {
    "sgd": lambda model: BUILDS["sgd"](model)[0],
    "thor": _rarely(),
    "thor, non-finite ignored": _rarely(
        refresh=Refresh(inverse_dtype="auto", on_nonfinite="ignore")
    ),
    "scale_free": lambda model: THOR.scale_free(model, lr=1e-4, interval=10**6),
}


def try_graph(task: Task, device: torch.device) -> None:
    """Captures a plain ``optimizer.step()`` in a CUDA graph, and times its replay."""
    for name, build in _TRIED.items():
        training = _Training(task, device, build)
        training.steps(5)
        training.pass_both_ways()
        try:
            eager = _milliseconds(device, training.optimizer.step)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                training.optimizer.step()
            replay = _milliseconds(device, graph.replay)
            _say(f"{name}: captured; eager {eager:.2f} ms, replayed {replay:.2f} ms")
        except Exception as error:  # noqa: BLE001 - that is the answer
            _say(f"{name}: {_said(error)}")
        del training


def try_compile(task: Task, device: torch.device) -> None:
    """Compiles a plain ``optimizer.step()``, and times it."""
    for name, build in list(_TRIED.items())[:2]:
        training = _Training(task, device, build)
        training.steps(5)
        training.pass_both_ways()
        try:
            eager = _milliseconds(device, training.optimizer.step)
            begin = time.perf_counter()
            step = torch.compile(training.optimizer.step)
            step()
            synchronize(device)
            seconds = time.perf_counter() - begin
            compiled = _milliseconds(device, step)
            _say(f"{name}: {seconds:.1f} s to compile; eager {eager:.2f}, then {compiled:.2f} ms")
        except Exception as error:  # noqa: BLE001 - that is the answer
            _say(f"{name}: {_said(error)}")
        del training
