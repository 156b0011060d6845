"""Cost of a training step: all optimizers in turn, in one process, ratios to the first.

Each optimizer trains its own copy of the model. Step i of every optimizer runs before step
i + 1 of any, so that drift of the machine hits all alike. With ``--interval N`` every refresh
interval is N steps: the first cycle is thrown away, over the following ones each position in the
cycle is measured once a cycle, its median is taken, and the mean over positions is the amortized
step. Without it the optimizers keep their own intervals (THOR's grow), and the amortized step is
the mean over the first ``--steps`` steps after the warm-up.

    python benchmarks/step_cost.py resnet18 --optimizers sgd,muon,thor --interval 20 --cycles 3
    python benchmarks/step_cost.py resnet18 --optimizers sgd,thor --steps 88
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from models import TASKS, Task
from optimizers import OPTIMIZERS, lacking
from thor_bench.report.tables import TextTable

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass
class Contestant:
    """One optimizer with its copy of the model and its measurements in seconds."""

    name: str
    model: nn.Module
    optimizers: list[Optimizer]
    steps: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)

    def step(self, task: Task, batch: tuple[Tensor, Tensor]) -> None:
        """Takes a training step and notes how long it and its optimizer took."""
        begin = time.perf_counter()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        task.loss(self.model, batch).backward()
        middle = time.perf_counter()
        for optimizer in self.optimizers:
            optimizer.step()
        end = time.perf_counter()
        self.steps.append(end - begin)
        self.updates.append(end - middle)

    def state_share(self) -> float:
        """Bytes of optimizer state ÷ bytes of parameters."""
        parameters = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return sum(_bytes(o.state_dict()) for o in self.optimizers) / parameters


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def amortized(times: list[float], interval: int | None) -> float:
    """Mean over the positions of a cycle of the median over cycles; the mean without cycles."""
    if interval is None:
        return statistics.fmean(times)
    return statistics.fmean(statistics.median(times[i::interval]) for i in range(interval))


def measure(
    task: Task, names: list[str], interval: int | None, warm_up: int, steps: int
) -> list[Contestant]:
    """Runs all contestants in turn for a discarded warm-up and the measured steps."""
    contestants = []
    for name in names:
        model = task.model()
        contestants.append(Contestant(name, model, OPTIMIZERS[name](model, task, interval)))
    batch = task.batch()
    gc.disable()
    for step in track(range(warm_up + steps), description="steps"):
        if step == warm_up:
            for contestant in contestants:
                contestant.steps.clear()
                contestant.updates.clear()
        for contestant in contestants:
            contestant.step(task, batch)
    return contestants


def report(
    title: str, contestants: list[Contestant], interval: int | None, absent: dict[str, str]
) -> str:
    """Returns a Markdown table; ratios are to the first contestant, absent ones say why."""
    first = contestants[0]
    base = amortized(first.steps, interval)
    rows = []
    for c in contestants:
        step, update = amortized(c.steps, interval), amortized(c.updates, interval)
        ordered = sorted(c.steps)
        tail = ordered[int(0.99 * (len(ordered) - 1))] / statistics.median(ordered)
        numbers = (f"{update * 1e3:.2f}", f"{tail:.2f}", f"{c.state_share():.2f}")
        rows.append((c.name, f"{step * 1e3:.1f}", f"{step / base:.3f}", *numbers))
    headings = (
        "optimizer", "step, ms", f"÷ {first.name}", "optimizer, ms", "p99 ÷ p50",
        "state ÷ parameters",
    )  # fmt: skip
    rows += [(name, what, "–", "–", "–", "–") for name, what in absent.items()]
    chosen = "own intervals" if interval is None else f"interval {interval}"
    head = f"{title}; {chosen}, {len(first.steps)} measured steps each"
    return f"{head}\n\n{TextTable(headings, tuple(rows)).to_markdown()}"


def main() -> None:
    """Parses the command line, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", choices=TASKS, default="small-resnet")
    parser.add_argument("--optimizers", default="sgd,sgd-fused,adamw,muon,thor")
    parser.add_argument("--interval", type=int, help="fixed refresh interval of all")
    parser.add_argument("--cycles", type=int, default=3, help="measured cycles, with --interval")
    parser.add_argument("--steps", type=int, default=88, help="measured steps, without --interval")
    parser.add_argument("--warm-up", type=int, default=20, help="steps thrown away first")
    chosen = parser.parse_args()
    names = chosen.optimizers.split(",")
    if unknown := [name for name in names if name not in OPTIMIZERS]:
        parser.error(f"--optimizers {','.join(unknown)}: allowed are {', '.join(OPTIMIZERS)}")
    torch.set_flush_denormal(True)
    interval = chosen.interval
    steps = chosen.steps if interval is None else interval * chosen.cycles
    warm_up = interval or chosen.warm_up
    absent = lacking(names)
    present = [name for name in names if name not in absent]
    contestants = measure(TASKS[chosen.task], present, interval, warm_up, steps)
    threads = torch.get_num_threads()
    title = f"{chosen.task}, torch {torch.__version__}, {threads} threads, {platform.machine()}"
    Console().print(report(title, contestants, interval, absent), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
