"""Curves of a comparison: training loss and test metric against epochs and seconds."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thor_bench.records.reading import Run
from thor_bench.records.task_card import Measure
from thor_bench.report.style import Theme, colours, legend, new_figure, plain

_ACROSS = {"epoch": "epoch", "seconds": "training time, s"}

# Times the picture's height: what never comes nearer would leave nothing else to see.
_FAR = 10
_POINTS = {
    "optimizer": pl.String, "run": pl.Int64, "place": pl.Int64, "x": pl.Float64, "y": pl.Float64,
    "arrives": pl.Boolean,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A family of curves: one value of each evaluation against another."""

    stem: str  # file name without ending
    title: str
    x: str  # field of the evaluations that is the horizontal value
    y: str  # the vertical one
    y_label: str
    shape: Callable[[Axes, pl.DataFrame], None]  # of the vertical axis
    arrives: Callable[[float], bool] = lambda _value: False  # the first of a run is marked


def curves(metric: Measure, target: float) -> list[Curve]:
    """Returns training loss and test metric, each against epochs and against seconds."""
    name = re.sub(r"[^\w-]+", "-", metric.name)  # of files
    name = "test-loss" if name == "loss" else name  # the training loss has a figure of its own
    loss = partial(Curve, y="train_loss", y_label="training loss", shape=_shape_loss)
    test = partial(
        Curve,
        y="test_metric",
        y_label=f"test {metric.name}, {metric.unit}".rstrip(", "),
        shape=partial(_shape_metric, metric=metric, target=target),
        arrives=partial(metric.reaches, target=target),
    )
    return [
        *(loss(stem=f"loss-{x}", title=f"Training loss against {x}", x=x) for x in _ACROSS),
        *(test(stem=f"{name}-{x}", title=f"Test {metric.name} against {x}", x=x) for x in _ACROSS),
    ]


def draw_curve(theme: Theme, *, curve: Curve, runs: Sequence[Run]) -> Figure:
    """Draws the median over seeds with the range as a band, one colour per optimizer."""
    points = _points(curve, runs)
    groups = points.partition_by("optimizer", maintain_order=True)
    seeds = max((group["run"].n_unique() for group in groups), default=1)
    # Small, so that its words can be read on a telephone.
    figure, axes = new_figure(curve.title, width=5.2, height=3.3)
    palette = colours([group["optimizer"][0] for group in groups], theme)
    for group, (name, colour) in zip(groups, palette.items(), strict=True):
        _draw_median(axes, group, name, colour)
        # Marked too because a run that ends there is shorter than the median's curve can show.
        reached = group.filter("arrives").unique("run", keep="first", maintain_order=True)
        if len(reached):
            axes.scatter(reached["x"], reached["y"], s=30, color=colour, edgecolors=theme.ink,
                         linewidths=0.9, zorder=3)  # fmt: skip
    axes.set(xlabel=_ACROSS[curve.x], ylabel=plain(curve.y_label))
    axes.set_xlim(left=0)
    curve.shape(axes, points)
    shown = axes.get_legend_handles_labels()[0]
    if points["arrives"].any():
        shown.append(_ring(theme, "a seed arrives" if seeds > 1 else "arrives"))
    legend(figure, handles=shown)
    return figure


def _ring(theme: Theme, label: str) -> Line2D:
    """Returns the sign of an arrival for a legend."""
    return Line2D(
        [],
        [],
        linestyle="",
        marker="o",
        markersize=5.5,
        markerfacecolor=theme.paper,
        markeredgecolor=theme.ink,
        markeredgewidth=0.9,
        label=label,
    )


def _points(curve: Curve, runs: Sequence[Run]) -> pl.DataFrame:
    """Returns one row an evaluation: its optimizer, run and number in the run, x, y, arrives."""
    rows = [
        (run.config.optimizer, n, place, x, y, curve.arrives(y))
        for n, run in enumerate(runs)
        for place, (x, y) in enumerate(map(attrgetter(curve.x, curve.y), run.evaluations))
    ]
    return pl.DataFrame(rows, schema=_POINTS, orient="row")


def _draw_median(axes: Axes, group: pl.DataFrame, name: str, colour: str) -> None:
    """Draws one optimizer's median as far as its shortest run goes, and the range around it."""
    seeds = group["run"].n_unique()
    y = pl.col("y")
    line = (
        group.group_by("place", maintain_order=True)
        .agg(pl.col("x").median(), y.median(), low=y.min(), high=y.max(), runs=pl.len())
        .filter(runs=seeds)
    )
    (drawn,) = axes.plot(line["x"], line["y"], color=colour, label=name)
    if len(line) <= 12:
        drawn.set(marker="o", markersize=3.5)
    if seeds > 1:
        band = line["x"], line["low"], line["high"]
        axes.fill_between(*band, color=colour, alpha=0.18, linewidth=0)


def _shape_loss(axes: Axes, points: pl.DataFrame) -> None:
    """Takes a logarithmic axis; a run that explodes leaves it through the top."""
    axes.set_yscale("log")
    first = points.filter(pl.col("place") == 0)["y"]
    if len(first) and axes.get_ylim()[1] > 30 * (top := 3 * float(np.median(first))):
        axes.set_ylim(top=top)


def _shape_metric(axes: Axes, points: pl.DataFrame, *, metric: Measure, target: float) -> None:
    """Draws the target and leaves out the first, far values, so that the finish is visible.

    The best of every optimizer is in view; the legend says of which it would be too far away.
    """
    label = plain(f"target {metric.goal(target)}")
    axes.axhline(target, color="0.5", linestyle=(0, (4, 3)), linewidth=1.1, label=label)
    values = points["y"].to_list()
    if not values:
        return
    early = float(np.quantile(values, 0.15 if metric.higher_is_better else 0.85))
    best = metric.best([*values, target])
    span = 8 * abs(best - target) + 0.02 * abs(target)
    far = max(early, target - span) if metric.higher_is_better else min(early, target + span)
    far = metric.worst([far, target])
    room = max(_FAR * abs(best - far), abs(target))
    reached = {
        name: metric.best(own["y"].to_list()) for (name,), own in points.group_by("optimizer")
    }
    far = metric.worst([far, *(value for value in reached.values() if abs(value - best) <= room)])
    for line in axes.get_lines():
        value = reached.get(line.get_label(), best)
        if abs(value - best) > max(room, abs(far - best)):
            line.set_label(f"{line.get_label()} (out of the picture)")
    low, high = sorted((far, best))
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
