"""Whole training steps as CUDA graphs, and what torch.compile makes of an optimizer's step."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpu_check import place_of
from gpu_contestants import GRAPHED
from gpu_time import clear, enter, milliseconds, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu_report import Report
    from gpu_time import Contestant
    from models import Task

_TIMES, _ROUNDS, _WARM_UP = 20, 3, 5


def _captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _warm_up(one: Contestant) -> None:
    """Some steps on a stream of their own, as torch asks for before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            one.step()
    torch.cuda.current_stream().wait_stream(stream)
    for optimizer in one.optimizers:
        optimizer.zero_grad()


def _of(device: torch.device, work: Callable[[], object]) -> float:
    return min(milliseconds(device, work, _TIMES) for _ in range(_ROUNDS))


def time_graphs(report: Report, title: str, task: Task, names: list[str]) -> None:
    """Captures whole training steps and replays them; a graph repeats its kind of step and rate.

    What can't be captured is a row that says why; then the optimizer's part is tried alone.
    """
    rows: list[tuple[str, ...]] = []
    first: float | None = None
    for name in [name for name in GRAPHED if name in names]:
        figures: list[str] = []
        # Steps without a backward between them refresh nothing.
        for whole in (True,) if name == "thor-interval-1" else (True, False):
            one = enter(name, task, report.device)
            try:
                _warm_up(one)
                if not whole:
                    one.gradients()
                work = one.step if whole else one.update
                eager = _of(report.device, work)
                for optimizer in one.optimizers if whole else ():
                    optimizer.zero_grad()
                replayed = _of(report.device, _captured(work).replay)
            except Exception as error:  # noqa: BLE001 - that is the answer
                figures += ["", "", _cause(error)] if whole else ["", _cause(error)]
            else:
                if whole and first is None:
                    first = replayed
                ratio = [f"{replayed / (first or replayed):.3f}"] if whole else []
                figures += [f"{eager:.2f}", f"{replayed:.2f}", *ratio]
            del one
            clear(report.device)
        rows.append((name, *figures))
        report.write(f"- {' | '.join(rows[-1])}")
    report.write("")
    report.table(
        (
            "optimizer", "whole step, eager, ms", "replayed, ms", "÷ the first", "optimizer, ms",
            "replayed, ms",
        ),
        rows,
    )  # fmt: skip
    report.record(title, rows)


def compile_update(report: Report, title: str, task: Task) -> None:
    """Compiles a plain ``optimizer.step()``, and times it."""
    device = report.device
    for name in ("sgd", "thor-plain"):
        one = enter(name, task, device)
        for _ in range(_WARM_UP):
            one.step()
        one.gradients()
        try:
            eager = _of(device, one.update)
            begin = time.perf_counter()
            backend = "inductor" if device.type == "cuda" else "eager"
            compiled = torch.compile(one.optimizers[0].step, backend=backend)
            compiled()
            synchronize(device)
            seconds = time.perf_counter() - begin
            later = _of(device, compiled)
            said = f"{seconds:.1f} s to compile; eager {eager:.2f} ms, then {later:.2f} ms"
        except Exception as error:  # noqa: BLE001 - that is the answer
            said = _cause(error)
        report.write(f"- {name}: {said}")
        report.record(f"{title}, {name}", said)
        del one
        clear(device)


def run_elsewhere(report: Report, title: str, arguments: list[str], limit: float) -> None:
    """Runs a part in a process of its own, which may hang or break the card's context."""
    with tempfile.TemporaryDirectory() as folder:
        command: list[Any] = [sys.executable, sys.argv[0], "--inside", "--out", folder, *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False
            )
            ended = f"ended with {done.returncode}: {done.stderr.strip()[-600:]}"
            ended = ended if done.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        said, found = Path(folder) / "gpu.md", Path(folder) / "gpu.json"
        report.write("\n".join([said.read_text() if said.exists() else "", ended]).strip())
        records = json.loads(found.read_text()) if found.exists() else {}
    report.record(title, records | ({"ended": ended} if ended else {}))


def _cause(error: BaseException) -> str:
    """The first cause: what ends a capture afterwards only says that something went wrong."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return place_of(error)
