"""Curves of a comparison: training loss and test metric against epochs and seconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thor_bench.records.reading import Run
from thor_bench.records.records import EvaluationRecord
from thor_bench.report.style import Theme, colours, legend, new_figure
from thor_bench.report.summary import group_by_optimizer
from thor_bench.tasks import Metric


@dataclass(frozen=True)
class Curve:
    """A family of curves: one value of each evaluation against another.

    Attributes:
        stem: File name without ending.
        title: Heading.
        x_label: Label of the horizontal axis.
        x: Horizontal value.
        y_label: Label of the vertical axis.
        y: Vertical value.
        shape: Shapes the vertical axis.
        arrives: Whether an evaluation has reached what the curve is about; the first one of each
            run that has is marked.
    """

    stem: str
    title: str
    x_label: str
    x: Callable[[EvaluationRecord], float]
    y_label: str
    y: Callable[[EvaluationRecord], float]
    shape: Callable[[Axes, Sequence[Run]], None]
    arrives: Callable[[EvaluationRecord], bool] = lambda _record: False


_HORIZONTAL: tuple[tuple[str, str, Callable[[EvaluationRecord], float]], ...] = (
    ("epoch", "epoch", attrgetter("epoch")),
    ("seconds", "training time, s", attrgetter("seconds")),
)


def curves(metric: Metric, target: float) -> list[Curve]:
    """Returns training loss and test metric, each against epochs and against seconds."""
    losses = [
        Curve(
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
        Curve(
            stem=f"{metric.name.replace(' ', '-')}-{name}",
            title=f"Test {metric.name} against {name}",
            x_label=label,
            x=x,
            y_label=f"test {metric.name}, {metric.unit}".rstrip(", "),
            y=attrgetter("test_metric"),
            shape=partial(_shape_metric, metric=metric, target=target),
            arrives=lambda record: metric.reaches(record.test_metric, target),
        )
        for name, label, x in _HORIZONTAL
    ]
    return losses + metrics


def draw_curve(_theme: Theme, *, curve: Curve, runs: Sequence[Run]) -> Figure:
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
        _mark_arrivals(axes, curve, group, palette[name])
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label)
    axes.set_xlim(left=0)
    curve.shape(axes, runs)
    legend(figure)
    return figure


def _mark_arrivals(axes: Axes, curve: Curve, group: Sequence[Run], colour: str) -> None:
    """Marks where runs arrive; one that ends there is shorter than the median's curve can show."""
    firsts = [next((r for r in run.evaluations if curve.arrives(r)), None) for run in group]
    points = [(curve.x(record), curve.y(record)) for record in firsts if record is not None]
    if points:
        across, values = zip(*points, strict=True)
        axes.scatter(
            across, values, s=22, color=colour, edgecolors="white", linewidths=0.6, zorder=3
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
