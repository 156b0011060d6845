"""Figures of one comparison, drawn from records alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.records.reading import Run
from thor_bench.report.curves import curves, draw_curve
from thor_bench.report.layer_figures import draw_changes, draw_decisions, runs_with_decisions
from thor_bench.report.style import DARK, LIGHT, Theme, save, themed
from thor_bench.tasks import find_workload


@dataclass(frozen=True)
class FigureFile:
    """A figure on disk, in both themes.

    Attributes:
        title: What it shows.
        light: PNG for light pages.
        dark: PNG for dark pages.
    """

    title: str
    light: Path
    dark: Path


Drawing = tuple[str, str, Callable[[Theme], Figure]]


def _drawings(runs: Sequence[Run], target: float) -> list[Drawing]:
    """Returns (file stem, title, how to draw it) of every figure that the runs allow."""
    metric = find_workload(runs[0].config.workload).metric
    drawings: list[Drawing] = [
        (curve.stem, curve.title, partial(draw_curve, curve=curve, runs=runs))
        for curve in curves(metric, target)
    ]
    for run in runs_with_decisions(runs):
        name = run.config.optimizer
        if any(record.change for record in run.decisions):
            draw = partial(draw_changes, run=run)
            drawings.append((f"change-{name}", f"Δ per layer, {name}", draw))
        draw = partial(draw_decisions, run=run)
        drawings.append((f"decisions-{name}", f"Decisions over time, {name}", draw))
    return drawings


def draw_figures(runs: Sequence[Run], target: float, directory: Path) -> list[FigureFile]:
    """Draws every figure of some runs as PNG, for light and for dark pages.

    Args:
        runs: Runs of one workload, at least one.
        target: Value of the metric that is timed.
        directory: Where the files go; must exist. Dark ones end in ``-dark.png``.

    Returns:
        The figures, in reading order.
    """
    return [
        write_figure(directory, stem, title, draw) for stem, title, draw in _drawings(runs, target)
    ]


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
            save(figure, path)
            if pdf and theme is LIGHT:
                save(figure, path.with_suffix(".pdf"))
    return files
