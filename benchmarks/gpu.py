"""Checks and times THOR on one GPU; needs torch, torchvision and torch_thor alone.

    PYTHONPATH=src python3 benchmarks/gpu.py                    # all, under 7 minutes
    PYTHONPATH=src python3 benchmarks/gpu.py --quick            # under 2.5 minutes
    PYTHONPATH=src python3 benchmarks/gpu.py --only check
    PYTHONPATH=src python3 benchmarks/gpu.py --only resnet18-128,profile
    PYTHONPATH=src python3 benchmarks/gpu.py --device cpu --tiny --compiled  # tries every line

First the check: the same float64 training on the CPU and on the card, and whether losses fall in
short types. Then launches, waits of the host, graphs. Then times: chunks of steps of all
optimizers in turn, in one process; the median over chunks, or for growing intervals the mean over
all. Every section stands alone: an error ends it, not the run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from gpu_check import MODELS, check_against_cpu, check_losses
from gpu_contestants import BUILDS, TASKS, TINY_TASKS
from gpu_profile import find_waits, profile_task, try_compile, try_elsewhere, try_graph
from gpu_report import Report
from gpu_time import Amounts, time_task

_QUICK_TASKS = ("resnet18-128", "gpt2-small", "resnet18-1024")
_QUICK_NAMES = ("sgd", "adamw", "muon", "thor", "thor-interval-1", "scale-free")
_COMPILED_NAMES = ("sgd", "adamw", "thor", "thor-interval-1")
_PROFILED = ("resnet18-128", "gpt2-small")
# Seconds that a section should have before it starts; an H200 took 16 … 38 for a task of --quick.
_NEEDED, _NEEDED_FOR_LARGE, _NEEDED_FOR_COMPILER = 15.0, 35.0, 60.0
_LARGE = ("gpt2-small", "resnet50-256", "vit-b16-128")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer models, optimizers and steps")
    parser.add_argument("--only", default="", help="check, profile, graph, compile or tasks' names")
    parser.add_argument("--compiled", action="store_true", help="with rows of compiled models")
    parser.add_argument("--optimizers", default="", help=f"some of {','.join(BUILDS)}")
    parser.add_argument("--seconds", type=float, help="start nothing new after these")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few steps")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--probe", choices=("graph", "compile"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    known = {"check", "profile", "graph", "compile", *TASKS}
    if unknown := set(filter(None, chosen.only.split(","))) - known:
        parser.error(f"--only {','.join(unknown)}: allowed are {', '.join(sorted(known))}")
    if unknown := set(filter(None, chosen.optimizers.split(","))) - set(BUILDS):
        parser.error(f"--optimizers {','.join(unknown)}: allowed are {', '.join(BUILDS)}")
    return chosen


def _run_checks(report: Report, chosen: argparse.Namespace) -> None:
    with report.section("float64 on this device and on the CPU: relative difference of weights"):
        check_against_cpu(report)
    with report.section("losses of one batch, 24 steps"):
        check_losses(report, ("convnet", "attention") if chosen.quick else MODELS)


def _run_profiles(report: Report, chosen: argparse.Namespace, wanted: set[str]) -> None:
    tasks = TINY_TASKS if chosen.tiny else TASKS
    named = [name for name in _PROFILED if name in chosen.only.split(",")]
    for name in named or _PROFILED[: 1 if chosen.quick else 2]:
        title = f"launches and waits, {name}"
        if "profile" in wanted and report.starts(title, _NEEDED):
            with report.section(title):
                profile_task(report, name, tasks[name])
            with report.section(f"where the host waits, {name}"):
                find_waits(report, name, tasks[name])
    again = ["--device", chosen.device, *(["--tiny"] if chosen.tiny else [])]
    for kind in ("graph", "compile"):
        if kind in wanted and report.starts(kind, 30.0):
            with report.section(f"optimizer.step() of resnet18-128 by torch.{kind}"):
                try_elsewhere(report, kind, again, min(60.0, report.left))


def _run_times(report: Report, chosen: argparse.Namespace, wanted: set[str]) -> None:
    tasks = TINY_TASKS if chosen.tiny else TASKS
    names = list(_QUICK_NAMES if chosen.quick else BUILDS)
    if chosen.optimizers:
        names = chosen.optimizers.split(",")
    amounts = Amounts(rounds=4, rounds_of_others=3) if chosen.quick else Amounts()
    if chosen.tiny:
        amounts = Amounts(2, 2, 3, 2)
    in_order = [name for name in chosen.only.split(",") if name in tasks] or tasks
    for name in in_order:
        needed = _NEEDED_FOR_LARGE if name in _LARGE else _NEEDED
        if name in wanted and report.starts(name, needed):
            with report.section(name):
                time_task(report, name, tasks[name], names, amounts)
    if not chosen.compiled or chosen.quick:
        return
    for name in _PROFILED:
        title = f"{name}, compiled model"
        if name in wanted and report.starts(title, _NEEDED_FOR_COMPILER):
            with report.section(title):
                some = [n for n in names if n in _COMPILED_NAMES]
                time_task(report, title, tasks[name], some, amounts, compiled=True)


def main() -> None:
    """Parses the command line and runs section after section."""
    chosen = _arguments()
    device = torch.device(chosen.device)
    if chosen.probe:
        task = (TINY_TASKS if chosen.tiny else TASKS)["resnet18-128"]
        (try_graph if chosen.probe == "graph" else try_compile)(task, device)
        return
    seconds = chosen.seconds or (140.0 if chosen.quick else 400.0)
    report = Report(chosen.out, device, seconds)
    everything = ["check", "profile", "graph", *(_QUICK_TASKS if chosen.quick else TASKS)]
    if not chosen.quick:
        everything.append("compile")
    wanted = set(filter(None, chosen.only.split(","))) or set(everything)
    if "check" in wanted:
        _run_checks(report, chosen)
    torch.backends.cudnn.benchmark = True
    _run_profiles(report, chosen, wanted)
    _run_times(report, chosen, wanted)


if __name__ == "__main__":
    main()
