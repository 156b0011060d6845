"""Figures of one comparison, drawn from records alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from torch_thor.bench.records import DecisionRecord, EvaluationRecord, Run
from torch_thor.bench.style import DARK, LIGHT, Theme, colours, save, themed
from torch_thor.bench.summary import group_by_optimizer
from torch_thor.bench.workloads import Metric, find_workload

_MOST_NAMED = 16  # layers that a legend has room for
_DECISIONS = ("update", "keep", "freeze")


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


@dataclass(frozen=True)
class _Curve:
    """A family of curves: one value of each evaluation against another.

    Attributes:
        stem: File name without ending.
        title: Heading.
        x_label: Label of the horizontal axis.
        x: Horizontal value.
        y_label: Label of the vertical axis.
        y: Vertical value.
        shape: Shapes the vertical axis.
    """

    stem: str
    title: str
    x_label: str
    x: Callable[[EvaluationRecord], float]
    y_label: str
    y: Callable[[EvaluationRecord], float]
    shape: Callable[[Axes, Sequence[Run]], None]


_HORIZONTAL: tuple[tuple[str, str, Callable[[EvaluationRecord], float]], ...] = (
    ("epoch", "epoch", attrgetter("epoch")),
    ("seconds", "training time, s", attrgetter("seconds")),
)


def curves(metric: Metric, target: float) -> list[_Curve]:
    """Returns training loss and test metric, each against epochs and against seconds."""
    losses = [
        _Curve(
            stem=f"loss-{name}",
            title=f"Training loss against {name}",
            x_label=label,
            x=x,
            y_label="training loss",
            y=attrgetter("train_loss"),
            shape=_shape_loss,
        )
        for name, label, x in _HORIZONTAL
    ]
    metrics = [
        _Curve(
            stem=f"{metric.name.replace(' ', '-')}-{name}",
            title=f"Test {metric.name} against {name}",
            x_label=label,
            x=x,
            y_label=f"test {metric.name}, {metric.unit}".rstrip(", "),
            y=attrgetter("test_metric"),
            shape=partial(_shape_metric, metric=metric, target=target),
        )
        for name, label, x in _HORIZONTAL
    ]
    return losses + metrics


def new_figure(title: str, *, height: float = 3.8) -> tuple[Figure, Axes]:
    """Returns a figure with one pair of axes under a title."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def draw_curve(_theme: Theme, *, curve: _Curve, runs: Sequence[Run]) -> Figure:
    """Draws the median over seeds with the range as a band, one colour per optimizer."""
    groups = group_by_optimizer([run for run in runs if run.evaluations])
    seeds = max((len(group) for group in groups.values()), default=1)
    title = curve.title if seeds == 1 else f"{curve.title} (median and range, {seeds} seeds)"
    figure, axes = new_figure(title)
    palette = colours(list(groups))
    for name, group in groups.items():
        points = [
            [(curve.x(record), curve.y(record)) for record in run.evaluations] for run in group
        ]
        length = min(len(row) for row in points)
        table = np.array([row[:length] for row in points])
        across, values = np.median(table[..., 0], axis=0), table[..., 1]
        (line,) = axes.plot(across, np.median(values, axis=0), color=palette[name], label=name)
        if length <= 12:
            line.set(marker="o", markersize=3.5)
        if len(group) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(across, low, high, color=palette[name], alpha=0.18, linewidth=0)
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label)
    axes.set_xlim(left=0)
    curve.shape(axes, runs)
    legend(figure)
    return figure


def legend(figure: Figure, *, handles: Sequence[Patch] | None = None) -> None:
    """Puts the legend under the axes, away from the data."""
    axes = figure.axes[0]
    chosen = handles or axes.get_legend_handles_labels()[0]
    # More text than one line holds is set smaller, in columns.
    many = sum(len(str(handle.get_label())) + 5 for handle in chosen) > 75
    figure.legend(
        handles=chosen,
        loc="outside lower center",
        ncols=min(4, len(chosen)) if many else len(chosen),
        fontsize=7.5 if many else 8.5,
        columnspacing=1.2,
        handlelength=1.5,
    )


def _shape_loss(axes: Axes, runs: Sequence[Run]) -> None:
    """Takes a logarithmic axis; a run that explodes leaves it through the top."""
    axes.set_yscale("log")
    first = [run.evaluations[0].train_loss for run in runs if run.evaluations]
    if first and axes.get_ylim()[1] > 30 * (top := 3 * float(np.median(first))):
        axes.set_ylim(top=top)


def _shape_metric(axes: Axes, runs: Sequence[Run], *, metric: Metric, target: float) -> None:
    """Draws the target and leaves out the first, far values, so that the finish is visible."""
    label = f"target {metric.goal(target)}"
    axes.axhline(target, color="0.5", linestyle=(0, (4, 3)), linewidth=1.1, label=label)
    values = np.array([record.test_metric for run in runs for record in run.evaluations])
    if not len(values):
        return
    early = float(np.quantile(values, 0.15 if metric.higher_is_better else 0.85))
    best = metric.best([*values.tolist(), target])
    span = 8 * abs(best - target) + 0.02 * abs(target)
    far = max(early, target - span) if metric.higher_is_better else min(early, target + span)
    low, high = sorted((far, best))
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _runs_with_decisions(runs: Sequence[Run]) -> list[Run]:
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


Drawing = tuple[str, str, Callable[[Theme], Figure]]


def _drawings(runs: Sequence[Run], target: float) -> list[Drawing]:
    """Returns (file stem, title, how to draw it) of every figure that the runs allow."""
    metric = find_workload(runs[0].config.workload).metric
    drawings: list[Drawing] = [
        (curve.stem, curve.title, partial(draw_curve, curve=curve, runs=runs))
        for curve in curves(metric, target)
    ]
    for run in _runs_with_decisions(runs):
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
