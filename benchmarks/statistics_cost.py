"""Cost of ``optimizer.statistics()``, against a training step of ResNet-18 on CIFAR's shapes.

python benchmarks/statistics_cost.py --every 50
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console

from models import TASKS
from torch_thor import THOR


def main() -> None:
    """Times steps, and between them the statistics with all numbers read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", choices=TASKS, default="resnet18")
    parser.add_argument("--every", type=int, default=50, help="steps between two calls")
    parser.add_argument("--steps", type=int, default=5, help="measured steps and calls")
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)
    task = TASKS[chosen.task]
    model, batch = task.model(), task.batch()
    optimizer = THOR(model)
    steps, calls = [], []
    for turn in range(1 + chosen.steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        between = time.perf_counter()
        optimizer.statistics().numbers()
        ended = time.perf_counter()
        if turn:
            steps.append(between - began)
            calls.append(ended - between)
    step, call = statistics.median(steps), statistics.median(calls)
    share = call / (chosen.every * step)
    Console().print(
        f"step {step * 1e3:.1f} ms, call {call * 1e3:.1f} ms, {share:.2%} every {chosen.every}"
    )


if __name__ == "__main__":
    main()
