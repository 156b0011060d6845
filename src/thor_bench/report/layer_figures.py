"""What the trace rule did with each layer: changes, norms and decisions over the steps."""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from thor_bench.records.reading import Run
from thor_bench.records.records import DecisionRecord
from thor_bench.report.style import Theme, legend, new_figure
from thor_bench.report.summary import group_by_optimizer

_MOST_NAMED = 16  # layers that a legend has room for
_DECISIONS = ("update", "keep", "freeze")


def runs_with_decisions(runs: Sequence[Run]) -> list[Run]:
    """Returns, of each optimizer that had a trace rule, its first run; others only refresh."""
    ruled = [run for run in runs if run.decisions and "update_above" in _thresholds(run)]
    return [group[0] for group in group_by_optimizer(ruled).values()]


def _thresholds(run: Run) -> dict[str, float]:
    """Returns those thresholds of a run's trace rule that it has."""
    said = {key: run.config.settings.get(key) for key in ("update_above", "freeze_below")}
    return {key: float(value) for key, value in said.items() if value}


def draw_changes(theme: Theme, *, run: Run) -> Figure:
    """Draws Δ of each layer over the steps, with both thresholds (the paper's Figures 2 and 3)."""
    title = f"Relative change Δ of the trace, {run.config.name}"
    figure = _draw_layers(theme, run, title, "Δ", attrgetter("change"))
    axes = figure.axes[0]
    symbols = {"update_above": "ω1", "freeze_below": "ω2"}
    for key, value in _thresholds(run).items():
        axes.axhline(value, color="0.5", linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            f"{symbols[key]} = {value:g}", (1, value), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=8.5,
        )  # fmt: skip
    return figure


def draw_norms(theme: Theme, *, run: Run) -> Figure:
    """Draws the Frobenius norm of each layer's curvature over the steps (Figure 1)."""
    title = f"Frobenius norm of the FIM, {run.config.name}"
    return _draw_layers(theme, run, title, "‖A ⊗ G‖", attrgetter("norm"))


def _draw_layers(
    theme: Theme, run: Run, title: str, label: str, value: Callable[[DecisionRecord], float | None]
) -> Figure:
    """Draws one value of each layer's refreshes over the steps, on a logarithmic axis."""
    figure, axes = new_figure(title, height=4.2)
    layers = _by_layer(run)
    places = np.linspace(0.15, 0.85, len(layers))
    shades = [theme.readable(to_hex(shade)) for shade in colormaps["viridis"](places)]
    for (layer, records), shade in zip(layers.items(), shades, strict=True):
        if made := [(record.step, value(record)) for record in records if value(record)]:
            axes.plot(*zip(*made, strict=True), color=shade, linewidth=1.2, marker="o",
                      markersize=2.2, label=layer)  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=label)
    if len(layers) <= _MOST_NAMED:
        legend(figure)
    else:
        first, *_, last = layers
        ends = f"{len(layers)} layers, from {first} (blue) to {last} (green)"
        axes.annotate(ends, (0.01, 0.02), xycoords="axes fraction", fontsize=8)
    return figure


def _by_layer(run: Run) -> dict[str, list[DecisionRecord]]:
    """Sorts a run's decisions by layer, in the order in which layers first appear."""
    layers: dict[str, list[DecisionRecord]] = {}
    for record in run.decisions:
        layers.setdefault(record.layer, []).append(record)
    return layers


def draw_decisions(theme: Theme, *, run: Run) -> Figure:
    """Draws, for each layer, what the latest decision was at each step."""
    layers = _by_layer(run)
    title = f"Decisions of the trace rule, {run.config.name}"
    figure, axes = new_figure(title, height=1.8 + 0.22 * len(layers))
    palette = dict(zip(_DECISIONS, theme.decisions, strict=True))
    last = run.started.total_steps
    for row, made in enumerate(layers.values()):
        ends = [record.step for record in made[1:]] + [max(last, made[-1].step + 1)]
        bars = [(record.step, end - record.step) for record, end in zip(made, ends, strict=True)]
        axes.broken_barh(
            bars, (row - 0.4, 0.8), facecolors=[palette[record.decision] for record in made],
            edgecolor=theme.paper, linewidth=0.4,
        )  # fmt: skip
    axes.set_yticks(range(len(layers)), list(layers), fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel="step")
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    counts = Counter(record.decision for record in run.decisions)
    legend(figure, handles=[Patch(color=c, label=f"{n} ({counts[n]})") for n, c in palette.items()])
    return figure
