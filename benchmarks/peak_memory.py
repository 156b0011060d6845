"""Peak memory of training steps, each optimizer in a process of its own, ratios to the first.

What the libraries take before the model exists does not count.

    python benchmarks/peak_memory.py resnet18 --optimizers sgd,thor --steps 25
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch
from rich.console import Console

from models import TASKS
from optimizers import OPTIMIZERS


def peak() -> int:
    """Largest resident size of this process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def train(task_name: str, optimizer: str, steps: int) -> int:
    """Trains and returns by how much the peak grew, in KiB."""
    task, before = TASKS[task_name], peak()
    model, batch = task.model(), task.batch()
    optimizers = OPTIMIZERS[optimizer](model, task, None)
    for _ in range(steps):
        for one in optimizers:
            one.zero_grad()
        task.loss(model, batch).backward()
        for one in optimizers:
            one.step()
    return peak() - before


def main() -> None:
    """Runs one process an optimizer and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", choices=TASKS, default="small-resnet")
    parser.add_argument("--optimizers", default="sgd,thor")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)
    if chosen.alone:
        sys.stdout.write(f"{train(chosen.task, chosen.optimizers, chosen.steps)}\n")
        return
    lines = ["| optimizer | peak, MiB | ÷ first |", "|---|---|---|"]
    first = None
    for name in chosen.optimizers.split(","):
        command = [sys.executable, __file__, chosen.task, "--optimizers", name, "--alone"]
        done = subprocess.run(
            [*command, "--steps", str(chosen.steps)], capture_output=True, text=True, check=True
        )
        grown = int(done.stdout)
        first = first or grown
        lines.append(f"| {name} | {grown / 1024:.0f} | {grown / first:.3f} |")
    Console().print("\n".join(lines), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
