"""What was to be seen of each layer while it trained: ranks, steps, ages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from thor_bench.records.reading import Run
from thor_bench.records.records import StatisticsRecord
from thor_bench.report.style import Theme, plain
from thor_bench.report.summary import group_by_optimizer

_MOST_NAMED = 40  # layers whose names fit beside each other
_SIDES: tuple[Literal["left", "center", "right"], ...] = ("left", "center", "right")
NOTE = (
    "Layers from the input down, over the steps. Rank: the share of directions that carry the "
    "inputs' covariance A; near 0 a few have everything. Step ÷ weight: how far a step moves a "
    "layer; late in training it should be small. Age: steps since the curvature in use was found."
)


@dataclass(frozen=True)
class _Panel:
    """One value of every layer at every evaluation."""

    title: str
    value: Callable[[StatisticsRecord], float | None]
    logarithmic: bool = False


_PANELS = (
    _Panel("rank of A ÷ its size", lambda one: one.rank_a and one.rank_a / one.size[0]),
    _Panel("step ÷ weight", lambda one: one.ratio, logarithmic=True),
    _Panel("age in steps", lambda one: one.age),
)


def runs_with_statistics(runs: Sequence[Run]) -> list[Run]:
    """Returns, of each optimizer that has curvature, its first run."""
    return [group[0] for group in group_by_optimizer([r for r in runs if r.statistics]).values()]


def draw_statistics(theme: Theme, *, run: Run) -> Figure:
    """Draws rank, step ÷ weight and age of each layer over the steps, a panel each."""
    layers = list(dict.fromkeys(record.layer for record in run.statistics))
    steps = sorted({record.step for record in run.statistics})
    figure = Figure(figsize=(6.4, 2.1 + 0.2 * min(len(layers), _MOST_NAMED)), layout="constrained")
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    figure.suptitle(plain(f"Layers, {run.config.name}"), fontweight="bold", fontsize=11)
    for place, panel in zip(axes, _PANELS, strict=True):
        values = np.full((len(layers), len(steps)), np.nan)
        for record in run.statistics:
            value = panel.value(record)
            if value is not None:
                values[layers.index(record.layer), steps.index(record.step)] = value
        shown = place.imshow(
            np.ma.masked_invalid(values),
            aspect="auto",
            cmap="viridis",
            norm=_scale(values, logarithmic=panel.logarithmic),
            interpolation="nearest",
        )
        place.set_title(panel.title, fontsize=9)
        chosen = range(0, len(steps), max(1, len(steps) // 3))
        place.set_xticks(list(chosen), [str(steps[n]) for n in chosen], fontsize=7.5)
        place.set_xlabel("step", fontsize=8.5)
        place.grid(visible=False)
        bar = figure.colorbar(shown, ax=place, location="bottom", aspect=14)
        bar.ax.minorticks_off()
        ticks = _ticks(shown.norm)
        bar.set_ticks(ticks, labels=[f"{value:.2g}" for value in ticks])
        bar.ax.tick_params(labelsize=7.5, colors=theme.ink)
        for label, side in zip(bar.ax.get_xticklabels(), _SIDES, strict=True):
            label.set_horizontalalignment(side)  # beside the next scale's
    named = range(0, len(layers), -(-len(layers) // _MOST_NAMED))
    axes[0].set_yticks(list(named), [layers[n] or "(the model)" for n in named], fontsize=7.5)
    return figure


def _ticks(scale: Normalize) -> list[float]:
    """The ends of a scale of colours, and its middle."""
    return [float(scale.inverse(place)) for place in (0.0, 0.5, 1.0)]


def _scale(values: np.ndarray, *, logarithmic: bool) -> Normalize:
    """Colours from the smallest to the largest value; of ages and shares, from 0 on."""
    positive = values[values > 0]
    if not logarithmic or not positive.size:
        return Normalize(0.0, max(1e-9, float(positive.max(initial=0.0))))
    return LogNorm(float(positive.min()), max(float(positive.max()), 1.01 * float(positive.min())))
