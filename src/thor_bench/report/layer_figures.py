"""What the trace rule did with each layer: changes, norms and decisions over the steps."""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from matplotlib import colormaps
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
    """Returns, of each optimizer that made decisions, its first run."""
    found = []
    for group in group_by_optimizer(runs).values():
        first = next((run for run in group if run.decisions), None)
        if first is not None:
            found.append(first)
    return found


def decided_layers(decisions: Sequence[DecisionRecord]) -> list[str]:
    """Returns the layers that decisions are about, in their order."""
    return list(dict.fromkeys(record.layer for record in decisions))


def _thresholds(run: Run) -> list[tuple[str, float]]:
    """Returns the named thresholds ω1 and ω2 that a run used, as far as it had any."""
    named = [("ω1", "update_above"), ("ω2", "freeze_below")]
    values = [(symbol, run.config.settings.get(key)) for symbol, key in named]
    return [(symbol, float(value)) for symbol, value in values if value]


def draw_changes(_theme: Theme, *, run: Run) -> Figure:
    """Draws Δ of each layer over the steps, with both thresholds (the paper's Figures 2 and 3)."""
    title = f"Relative change Δ of the trace, {run.config.name}"
    figure = _draw_layers(run, title, "Δ", attrgetter("change"))
    axes = figure.axes[0]
    for symbol, value in _thresholds(run):
        axes.axhline(value, color="0.5", linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            f"{symbol} = {value:g}", (1, value), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", fontsize=8.5,
        )  # fmt: skip
    return figure


def draw_norms(_theme: Theme, *, run: Run) -> Figure:
    """Draws the Frobenius norm of each layer's curvature over the steps (Figure 1)."""
    title = f"Frobenius norm of the FIM, {run.config.name}"
    return _draw_layers(run, title, "‖A ⊗ G‖", attrgetter("norm"))


def _draw_layers(
    run: Run, title: str, label: str, value: Callable[[DecisionRecord], float | None]
) -> Figure:
    """Draws one value of each layer's refreshes over the steps, on a logarithmic axis."""
    figure, axes = new_figure(title, height=4.2)
    layers = decided_layers(run.decisions)
    shades = colormaps["viridis"](np.linspace(0.15, 0.85, len(layers)))
    for layer, shade in zip(layers, shades, strict=True):
        made = [(r.step, value(r)) for r in run.decisions if r.layer == layer and value(r)]
        if made:
            steps, values = zip(*made, strict=True)
            axes.plot(steps, values, color=shade, linewidth=1.2, marker="o", markersize=2.2,
                      label=layer)  # fmt: skip
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=label)
    if len(layers) <= _MOST_NAMED:
        legend(figure)
    else:
        ends = f"{len(layers)} layers, from {layers[0]} (dark) to {layers[-1]} (light)"
        axes.annotate(ends, (0.01, 0.02), xycoords="axes fraction", fontsize=8)
    return figure


def draw_decisions(theme: Theme, *, run: Run) -> Figure:
    """Draws, for each layer, what the latest decision was at each step."""
    layers = decided_layers(run.decisions)
    title = f"Decisions of the trace rule, {run.config.name}"
    figure, axes = new_figure(title, height=1.8 + 0.22 * len(layers))
    palette = dict(zip(_DECISIONS, theme.decisions, strict=True))
    last = run.started.total_steps
    for row, layer in enumerate(layers):
        made = [record for record in run.decisions if record.layer == layer]
        ends = [record.step for record in made[1:]] + [max(last, made[-1].step + 1)]
        bars = [(record.step, end - record.step) for record, end in zip(made, ends, strict=True)]
        axes.broken_barh(
            bars, (row - 0.4, 0.8), facecolors=[palette[record.decision] for record in made],
            edgecolor=theme.paper, linewidth=0.4,
        )  # fmt: skip
    axes.set_yticks(range(len(layers)), layers, fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel="step")
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    counts = Counter(record.decision for record in run.decisions)
    legend(
        figure,
        handles=[
            Patch(color=palette[name], label=f"{name} ({counts[name]})") for name in _DECISIONS
        ],
    )
    return figure
