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
from thor_bench.report.watch_figures import NOTE, draw_statistics, runs_with_statistics
from thor_bench.tasks import card_of


@dataclass(frozen=True)
class FigureFile:
    """A figure on disk, in both themes."""

    title: str
    light: Path  # PNG for light pages
    dark: Path
    note: str = ""  # what a reader has to know who has not read the paper


_RULE = "The trace rule compares the trace of a layer's curvature with that of its last refresh. "
_CHANGES = (
    f"{_RULE}Δ is the relative change: above ω1 the layer is refreshed, below ω2 it is frozen, and "
    "in between it keeps what it has. The first run of the optimizer is shown."
)
_DECISIONS = (
    f"{_RULE}A bar is what was decided for the layer at its last turn: to refresh (update), to "
    "keep what it has, or never to look again (freeze)."
)


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
    written = [
        write_figure(directory, one.stem, one.title, partial(draw_curve, curve=one, runs=runs))
        for one in curves(metric, target)
    ]
    for run in runs_with_decisions(runs):
        name, draw = run.config.optimizer, partial(draw_decisions, run=run)
        if any(record.change for record in run.decisions):
            title, change = f"Δ per layer, {name}", partial(draw_changes, run=run)
            written.append(write_figure(directory, f"change-{name}", title, change, note=_CHANGES))
        title = f"Decisions over time, {name}"
        written.append(write_figure(directory, f"decisions-{name}", title, draw, note=_DECISIONS))
    for run in runs_with_statistics(runs):
        name, layers = run.config.optimizer, partial(draw_statistics, run=run)
        title = f"Layers over time, {name}"
        written.append(write_figure(directory, f"layers-{name}", title, layers, note=NOTE))
    return written


def write_figure(
    directory: Path,
    stem: str,
    title: str,
    draw: Callable[[Theme], Figure],
    *,
    pdf: bool = False,
    note: str = "",
) -> FigureFile:
    """Draws one figure as PNG, for light and for dark pages, and as PDF where asked.

    Args:
        directory: Where the files go; must exist.
        stem: File name without ending.
        title: What it shows.
        draw: ``theme -> figure``.
        pdf: Whether the light one is written as PDF too.
        note: What stands under it on a page.
    """
    files = FigureFile(title, directory / f"{stem}.png", directory / f"{stem}-dark.png", note)
    for theme, path in ((LIGHT, files.light), (DARK, files.dark)):
        with themed(theme):
            figure = draw(theme)
            figure.savefig(path)
            if pdf and theme is LIGHT:
                figure.savefig(path.with_suffix(".pdf"))
    return files
