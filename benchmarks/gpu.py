"""Times and checks THOR on one GPU; needs torch and torch_thor alone.

    PYTHONPATH=src python3 benchmarks/gpu.py                        # all, under 7 minutes
    PYTHONPATH=src python3 benchmarks/gpu.py --parts times --tasks gpt2-small
    PYTHONPATH=src python3 benchmarks/gpu.py --seconds 150          # what comes first, no more
    PYTHONPATH=src python3 benchmarks/gpu.py --device cpu --tiny    # tries every line, on a CPU

Parts, in this order: times of eager steps, each task in turn; launches, waits of the host and time
in kernels; float64 training on the CPU and on the card, and whether losses fall in short types;
whole steps as CUDA graphs; compiled models and a compiled optimizer.step(). Each stands alone: an
error ends it, not the run. What a limit leaves out says so. Tables are written as they come.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpu_captured import compile_update, run_elsewhere, time_graphs
from gpu_check import MODELS, check_against_cpu, check_losses
from gpu_contestants import BUILDS, COMPILED, GRAPHED, TASKS, TINY_TASKS, USUAL
from gpu_profile import find_waits, profile_task
from gpu_report import Report
from gpu_time import Amounts, time_task

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = ("times", "launches", "check", "graphs", "compiled")
_LARGE = ("gpt2-small", "resnet50-256", "vit-b16-128")
_FEW = ("resnet18-128", "gpt2-small")  # whose launches are looked at, and which are captured
# Seconds for a task: times of small and of large models, graphs, compiled models.
_SMALL_TASK, _LARGE_TASK, _GRAPHS, _COMPILED = 30.0, 45.0, 45.0, 75.0
_AT_LEAST = 12.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, known in (("parts", PARTS), ("tasks", TASKS), ("optimizers", BUILDS)):
        parser.add_argument(f"--{name}", type=_some_of(known), help=f"some of {','.join(known)}")
    parser.add_argument("--seconds", type=float, default=400.0, help="start nothing new after")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few steps")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _some_of(known: Sequence[str]) -> object:
    def names(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := set(asked) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return asked

    return names


class _Run:
    """A report with what was asked for."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.tasks = TINY_TASKS if chosen.tiny else TASKS
        self.report = Report(chosen.out, torch.device(chosen.device), chosen.seconds)
        self.amounts = Amounts(2, 3, 2) if chosen.tiny else Amounts()

    def names(self, usual: Sequence[str]) -> list[str]:
        asked = self.chosen.optimizers
        return list(usual) if asked is None else [name for name in BUILDS if name in asked]

    def named(self, usual: Sequence[str]) -> list[str]:
        asked = self.chosen.tasks
        return list(usual) if asked is None else [name for name in TASKS if name in asked]

    def times(self) -> None:
        for name in self.named(tuple(TASKS)):
            seconds = _LARGE_TASK if name in _LARGE else _SMALL_TASK
            if self.report.starts(name, _AT_LEAST):
                with self.report.section(name):
                    time_task(
                        self.report,
                        name,
                        self.tasks[name],
                        self.names(USUAL),
                        self.amounts,
                        seconds,
                    )

    def launches(self) -> None:
        for name in self.named(_FEW):
            title = f"launches, {name}"
            if self.report.starts(title, _AT_LEAST):
                with self.report.section(title):
                    profile_task(self.report, name, self.tasks[name])
                with self.report.section(f"where the host waits, {name}"):
                    find_waits(self.report, name, self.tasks[name])

    def graphs(self) -> None:
        self._elsewhere("graphs", _GRAPHS, self._graphs)

    def _graphs(self, name: str) -> None:
        time_graphs(self.report, name, self.tasks[name], self.names(GRAPHED))

    def compiled(self) -> None:
        self._elsewhere("compiled", _COMPILED, self._compiled)

    def _compiled(self, name: str) -> None:
        task, seconds = self.tasks[name], self.report.left
        names = self.names(COMPILED)
        time_task(self.report, name, task, names, self.amounts, seconds, compiled=True)
        self.report.write("\noptimizer.step() compiled:\n")
        compile_update(self.report, name, task)

    def _elsewhere(self, part: str, seconds: float, inside: object) -> None:
        for name in self.named(_FEW):
            if self.chosen.inside:
                inside(name)
                continue
            title, limit = f"{part}, {name}", min(seconds, self.report.left)
            if self.report.starts(title, 1.5 * _AT_LEAST):
                again = ["--parts", part, "--tasks", name]
                again += ["--device", self.chosen.device, "--seconds", str(limit - 5.0)]
                if self.chosen.optimizers:
                    again += ["--optimizers", ",".join(self.chosen.optimizers)]
                with self.report.section(title):
                    again += ["--tiny"] if self.chosen.tiny else []
                    run_elsewhere(self.report, title, again, limit)

    def check(self) -> None:
        kinds = ("mlp",) if self.chosen.tiny else tuple(MODELS)
        if self.report.starts("check", 2 * _AT_LEAST):
            with self.report.section("losses of one batch, 24 steps"):
                check_losses(self.report, kinds)
            title = "float64 on this device and on the CPU: relative difference of weights"
            with self.report.section(title):
                check_against_cpu(self.report, kinds)


def main() -> None:
    """Parses the command line and runs part after part."""
    chosen = _arguments()
    torch.backends.cudnn.benchmark = True
    run = _Run(chosen)
    for part in PARTS:
        if chosen.parts is None or part in chosen.parts:
            getattr(run, part)()


if __name__ == "__main__":
    main()
