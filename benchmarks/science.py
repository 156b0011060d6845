"""Equations and fits: time to an error, by Gauss-Newton and by what people use else.

``python benchmarks/science.py poisson-2d heat --out docs/results/science`` searches each
optimizer's settings on seed 0, runs the best ones on fresh seeds, and writes a table of each
problem. Seconds are those of this process on the CPU, without the test's.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_optimizer import SOAP
from torch import Tensor, nn

from science_problems import Batch, Problem, problems
from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.peers import muon
from thor_bench.optimizers.peers.muon import MuonSettings
from torch_thor import THOR, GaussNewton, NormControl

Step = Callable[[Callable[[], tuple[Tensor, ...]], float], None]  # closure, share of time left
Start = Callable[[nn.Module], Step]


@dataclass(frozen=True)
class Setting:
    """An optimizer with one of its settings.

    Attributes:
        name: The optimizer.
        said: The setting, in words.
        start: Begins a run of a network.
        size: Which of a problem's numbers of points a step takes.
        draws: Whether each step has points of its own.
        dtype: Of everything.
    """

    name: str
    said: str
    start: Start
    size: int
    draws: bool
    dtype: torch.dtype
    decays: bool = False  # whether its rate falls over the time that it has


@dataclass(frozen=True)
class Run:
    """What a run has come to: seconds to each target, infinite where missed, and the last error."""

    seconds: dict[float, float]
    error: float
    steps: int
    spent: float


def loss_of(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack([0.5 * term.square().sum() / len(term) for term in terms]).sum()


def first_order(
    build: Callable[[nn.Module, float], list[torch.optim.Optimizer]], lr: float
) -> Start:
    """Steps of one or more optimizers, whose rate falls linearly to a hundredth."""

    def start(net: nn.Module) -> Step:
        optimizers = build(net, lr)
        groups = [g for one in optimizers for g in one.param_groups]
        rates = [g["lr"] for g in groups]

        def step(closure: Callable[[], tuple[Tensor, ...]], left: float) -> None:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * max(left, 0.01)
            net.zero_grad()
            loss_of(closure()).backward()
            for one in optimizers:
                one.step()

        return step

    return start


def lbfgs(net: nn.Module) -> Step:
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=10, history_size=50, line_search_fn="strong_wolfe"
    )

    def step(closure: Callable[[], tuple[Tensor, ...]], _left: float) -> None:
        def loss() -> Tensor:
            optimizer.zero_grad()
            value = loss_of(closure())
            value.backward()
            return value

        optimizer.step(loss)

    return step


def gauss_newton(**options: Any) -> Start:
    def start(net: nn.Module) -> Step:
        optimizer = GaussNewton(net, **options)
        return lambda closure, _left: optimizer.step(closure) and None

    return start


def _adam(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(net.parameters(), lr=lr)]


def _soap(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [SOAP(net.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=10)]


def _muon(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for p in net.parameters() if p.dim() == 2 and min(p.shape) > 3]
    rest = [p for p in net.parameters() if all(p is not m for m in matrices)]
    kind: Any = torch.optim.Muon
    return [kind(matrices, lr=lr, weight_decay=0.0), torch.optim.Adam(rest, lr=0.1 * lr)]


def _normuon(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    chosen = MuonSettings(
        lr=lr, momentum=0.95, weight_decay=0.0, row_decay=0.95,
        rest="adamw", rest_lr=0.1 * lr, rest_weight_decay=0.0,
    )  # fmt: skip
    return list(muon.build(Training(net, 1), chosen))


def _thor(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [THOR(net, lr=lr, weight_decay=0.0)]


def _thor_evened(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    control = NormControl("rms", row_decay=0.95)
    return [THOR(net, lr=lr, norm_control=control, weight_decay=0.0)]


def settings(*, image: bool) -> Iterator[Setting]:
    """As many of each optimizer."""
    single, double = torch.float32, torch.float64
    rates: dict[Any, tuple[str, tuple[float, ...]]] = {
        _adam: ("Adam", (1e-3, 3e-3, 1e-2)),
        _soap: ("SOAP", (1e-3, 3e-3, 1e-2)),
        _muon: ("Muon", (3e-3, 1e-2, 3e-2)),
    }
    if image:
        rates[_normuon] = ("NorMuon", (3e-3, 1e-2, 3e-2))
        rates[_thor] = ("THOR", (0.01, 0.02, 0.03))
        rates[_thor_evened] = ("THOR, rows evened", (0.01, 0.02, 0.03))
    for build, (name, choices) in rates.items():
        for lr in choices:
            yield Setting(
                name,
                f"lr={lr:g}",
                first_order(build, lr),
                0 if image else 1,
                draws=True,
                dtype=single,
                decays=True,
            )
    for size in range(3):
        yield Setting(
            "L-BFGS",
            f"points {size + 1} of 3",
            lbfgs,
            size,
            draws=False,
            dtype=single if image else double,
        )
    if not image:
        for size, dtype in ((0, single), (1, single), (1, double)):
            said = f"points {size + 1} of 3, {str(dtype)[6:]}"
            yield Setting("GaussNewton", said, gauss_newton(), size, draws=True, dtype=dtype)


def run(problem: Problem, setting: Setting, seed: int, seconds: float) -> Run:
    """Trains until the last target or the end of time."""
    torch.manual_seed(seed)
    torch.set_default_dtype(setting.dtype)
    net = problem.network()
    stream = torch.Generator().manual_seed(seed + 1)
    step, batch = setting.start(net), problem.draw(problem.sizes[setting.size], stream)
    reached: dict[float, float] = {}
    spent, looked, steps, error = 0.0, 0.0, 0, math.inf
    held: list[Batch] = [batch]
    while spent < seconds:
        started = time.process_time()
        if setting.draws and steps:
            held[0] = problem.draw(problem.sizes[setting.size], stream)
        step(lambda: problem.residuals(net, held[0]), 1 - spent / seconds)
        spent, steps = spent + time.process_time() - started, steps + 1
        if spent - looked < seconds / problem.looks and spent < seconds:
            continue
        looked, error = spent, problem.error(net)
        for target in problem.targets:
            if error <= target:
                reached.setdefault(target, spent)
        if error <= problem.targets[-1] or math.isnan(error):
            break
    return Run({t: reached.get(t, math.inf) for t in problem.targets}, error, steps, spent)


def rank(found: Run, targets: Sequence[float]) -> tuple[float, ...]:
    """Time to the second target, else the error."""
    return (found.seconds[targets[1]], found.error if not math.isnan(found.error) else math.inf)


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def compare(name: str, problem: Problem, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Searches, then runs fresh seeds; a row of each run."""
    chosen: dict[str, tuple[tuple[float, ...], Setting]] = {}
    for setting in settings(image=name.startswith("image")):
        if asked.optimizers and setting.name not in asked.optimizers:
            continue
        found = run(problem, setting, 0, asked.search)
        score = rank(found, problem.targets)
        tell(name, "search", setting.name, setting.said, f"{found.error:.2e}", found.seconds)
        if setting.name not in chosen or score < chosen[setting.name][0]:
            chosen[setting.name] = (score, setting)
    rows = []
    for seed in range(1, asked.seeds + 1):  # seed by seed, so that all see the same machine
        for _, setting in chosen.values():
            # Where a rate falls over a run, a shorter one may be there sooner.
            for seconds in asked.horizons if setting.decays else asked.horizons[-1:]:
                found = run(problem, setting, seed, seconds)
                rows.append(row_of(name, setting, seed, seconds, found))
                tell(name, *rows[-1].values())
    return rows


def row_of(name: str, setting: Setting, seed: int, seconds: float, found: Run) -> dict[str, Any]:
    said = f"{setting.said}, {seconds:g} s" if setting.decays else setting.said
    row = {"problem": name, "optimizer": setting.name, "setting": said, "seed": seed}
    times = {f"to {t:g}": s for t, s in found.seconds.items()}
    return row | times | {"error": found.error, "steps": found.steps, "seconds": found.spent}


def table(rows: Sequence[dict[str, Any]], unit: str, seconds: float) -> str:
    """Medians over seeds, with the least and the most."""
    targets = [key for key in rows[0] if key.startswith("to ")]
    head = ["optimizer", "setting", *(f"s {t}" for t in targets), unit, "steps/s"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    for name, setting in dict.fromkeys((row["optimizer"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["optimizer"], row["setting"]) == (name, setting)]
        cells = [name, setting]
        cells += [_spread([row[target] for row in own], "{:.1f}") for target in targets]
        cells.append(_spread([row["error"] for row in own], "{:.1e}"))
        cells.append(f"{statistics.median(r['steps'] / r['seconds'] for r in own):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    seeds = len({row["seed"] for row in rows})
    lines.append(
        f"\nMedians of {seeds} seeds (least–most), at most {seconds:g} s of one core each."
    )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    def shown(value: float) -> str:
        return "∞" if math.isinf(value) else form.format(value)

    middle = statistics.median_low(values)
    return f"{shown(middle)} ({shown(min(values))}–{shown(max(values))})"


def main() -> None:
    known = problems()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="+", choices=[*known])
    parser.add_argument("--optimizers", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--horizons", nargs="+", type=float, default=[6.0, 20.0, 60.0], help="seconds of runs"
    )
    parser.add_argument("--search", type=float, default=20.0, help="most that a search run takes")
    parser.add_argument("--out", type=Path, default=Path("runs/science"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.problems:
        problem = known[name]()
        rows = compare(name, problem, asked)
        with (asked.out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = table(rows, problem.unit, asked.horizons[-1])
        (asked.out / f"{name}.md").write_text(f"# {name}\n\n{text}", encoding="utf-8")
        tell(text)


if __name__ == "__main__":
    main()
