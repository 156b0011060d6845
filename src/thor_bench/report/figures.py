"""Figures of one comparison, drawn from records alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.records.reading import Run
from thor_bench.report.curves import curves, draw_curve
from thor_bench.report.layer_figures import draw_changes, draw_decisions, runs_with_decisions
from thor_bench.report.style import DARK, LIGHT, Theme, themed
from thor_bench.report.watch_figures import draw_statistics, runs_with_statistics
from thor_bench.tasks import card_of


@dataclass(frozen=True)
class FigureFile:
    """A figure on disk, in both themes."""

    title: str
    light: Path  # PNG for light pages
    dark: Path


def draw_figures(runs: Sequence[Run], target: float, directory: Path) -> list[FigureFile]:
    """Draws every figure that some runs allow as PNG, for light and for dark pages.

    Args:
        runs: Runs of one workload, at least one.
        target: Value of the metric that is timed.
        directory: Where the files go; must exist. Dark ones end in ``-dark.png``.

    Returns:
        The figures, in reading order.
    """
    metric = card_of(runs[0].started).metric
    drawings: list[tuple[str, str, Callable[[Theme], Figure]]] = [
        (one.stem, one.title, partial(draw_curve, curve=one, runs=runs))
        for one in curves(metric, target)
    ]
    for run in runs_with_decisions(runs):
        name = run.config.optimizer
        if any(record.change for record in run.decisions):
            draw = partial(draw_changes, run=run)
            drawings.append((f"change-{name}", f"Δ per layer, {name}", draw))
        draw = partial(draw_decisions, run=run)
        drawings.append((f"decisions-{name}", f"Decisions over time, {name}", draw))
    for run in runs_with_statistics(runs):
        name, draw = run.config.optimizer, partial(draw_statistics, run=run)
        drawings.append((f"layers-{name}", f"Layers over time, {name}", draw))
    return [write_figure(directory, *drawing) for drawing in drawings]


def write_figure(
    directory: Path, stem: str, title: str, draw: Callable[[Theme], Figure], *, pdf: bool = False
) -> FigureFile:
    """Draws one figure as PNG, for light and for dark pages, and as PDF where asked.

    Args:
        directory: Where the files go; must exist.
        stem: File name without ending.
        title: What it shows.
        draw: ``theme -> figure``.
        pdf: Whether the light one is written as PDF too.
    """
    files = FigureFile(title, directory / f"{stem}.png", directory / f"{stem}-dark.png")
    for theme, path in ((LIGHT, files.light), (DARK, files.dark)):
        with themed(theme):
            figure = draw(theme)
            figure.savefig(path)
            if pdf and theme is LIGHT:
                figure.savefig(path.with_suffix(".pdf"))
    return files
