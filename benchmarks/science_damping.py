"""``python benchmarks/science_damping.py``: what a wrong first λ costs ``GaussNewton``.

Trains each equation from first λs a hundred times apart, and writes the ratios of final errors:
that from 100 × and from 1/100 of the best λ ÷ that from the best. Steps are counted, not seconds,
and all is float64, so that every machine finds the same up to rounding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

from science_problems import Problem, problems
from torch_thor import GaussNewton

DAMPINGS = tuple(10.0**power for power in range(-7, 4, 2))
_APART = 100.0


def errors(problem: Problem, damping: float, seed: int, horizons: list[int]) -> list[float]:
    """Errors after some numbers of steps, each on new points."""
    torch.manual_seed(seed)
    net, stream = problem.network(), torch.Generator().manual_seed(seed + 1)
    optimizer, found = GaussNewton(net, damping=damping), []
    for step in range(1, max(horizons) + 1):
        batch = problem.draw(problem.sizes[0], stream)
        optimizer.step(lambda batch=batch: problem.residuals(net, batch))
        if step in horizons:
            found.append(problem.error(net))
    return found


def measure(name: str, seeds: int, horizons: list[int]) -> dict[float, list[float]]:
    """Median errors of each first λ, one a horizon."""
    problem, medians = problems()[name](), {}
    for damping in DAMPINGS:
        runs = [errors(problem, damping, seed, horizons) for seed in range(1, seeds + 1)]
        medians[damping] = [statistics.median(column) for column in zip(*runs, strict=True)]
        shown = " ".join(f"{one:.2e}" for one in medians[damping])
        sys.stdout.write(f"{name} λ {damping:g}: {shown}\n")
        sys.stdout.flush()
    return medians


def rows(name: str, medians: dict[float, list[float]], horizons: list[int]) -> list[str]:
    """A line of the table for each horizon."""
    lines = []
    for column, steps in enumerate(horizons):
        found = {damping: values[column] for damping, values in medians.items()}
        # The best of those that have a neighbour on either side.
        best = min(DAMPINGS[1:-1], key=lambda damping: found[damping])
        low, high = (found[DAMPINGS[DAMPINGS.index(best) + way]] / found[best] for way in (-1, 1))
        worst = max(found.values()) / found[best]
        cells = [name, steps, f"{best:g}", f"{found[best]:.1e}"]
        cells += [f"{ratio:.2f}" for ratio in (low, high, worst)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=["poisson-2d", "poisson-5d", "heat"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", nargs="+", type=int, default=[25, 50])
    parser.add_argument("--out", type=Path, default=Path("docs/results/science"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    lines = [
        "| problem | steps | best first λ | error from it | ÷ 100 | × 100 | worst of all |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in asked.problems:
        lines += rows(name, measure(name, asked.seeds, asked.steps), asked.steps)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = (
        f"# What a wrong first λ costs\n\n{chr(10).join(lines)}\n\n"
        f"Median errors of {asked.seeds} seeds. The last three columns are ratios to the error "
        f"from the best λ: from λ ÷ {_APART:g}, from λ × {_APART:g}, and from the worst of "
        f"{DAMPINGS[0]:g} … {DAMPINGS[-1]:g}.\n"
    )
    (asked.out / "damping.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
