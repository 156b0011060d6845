"""One look for every figure: colour-blind-safe, quiet axes, readable on light and dark pages."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

_LOOK = Path(__file__).with_name("look.mplstyle")

# Okabe and Ito (2008), in an order that keeps neighbours apart; for more names, darker ones.
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_MORE_HUES = (
    "#7F3C8D", "#999933", "#882255", "#44AA99", "#6B4C1E", "#6699CC", "#DDAA33", "#8A97A6",
)  # fmt: skip
_FIXED = {
    "thor": "#D55E00",
    "sgd": "#0072B2",
    "adamw": "#009E73",
    "muon": "#CC79A7",
    "kfac": "#E69F00",
    "ekfac": "#56B4E9",
    "paper-thor": "#7F3C8D",
    "paper-thor-stop": "#CC79A7",
    "paper-thor-nt": "#009E73",
    "paper-kfac": "#E69F00",
}


@dataclass(frozen=True)
class Theme:
    """Colours of a page."""

    name: str
    paper: str  # background
    ink: str  # text and axes
    faint: str  # grid and secondary lines
    decisions: tuple[str, str, str]  # update, keep and freeze
    contrast: float = 1.0  # that lines have to the paper, at least (WCAG 2's ratio, 1 … 21)

    def readable(self, colour: str) -> str:
        """Returns a colour, nearer to the ink's where it stands out too little."""
        weights = (share / 20 for share in range(21))
        mixed = (_mixed(colour, self.ink, weight) for weight in weights)
        return next((one for one in mixed if _contrast(one, self.paper) >= self.contrast), self.ink)


def _mixed(colour: str, other: str, weight: float) -> str:
    red, green, blue = (
        (1 - weight) * one + weight * two
        for one, two in zip(to_rgb(colour), to_rgb(other), strict=True)
    )
    return to_hex((red, green, blue))


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


LIGHT = Theme("light", "#ffffff", "#1f2933", "#c9d1d9", ("#D55E00", "#56B4E9", "#8a97a6"))
DARK = Theme("dark", "#14181d", "#e6edf3", "#3d4650", ("#E8762D", "#56B4E9", "#6c7885"), 4.5)


def colours(names: Sequence[str], theme: Theme) -> Mapping[str, str]:
    """Returns a colour for each optimizer; the well-known ones keep theirs in every figure.

    Of two whose usual colour is the same, the first has it. Colours repeat after fourteen names.
    """
    return {name: theme.readable(hue) for name, hue in _hues(names).items()}


def _hues(names: Sequence[str]) -> Mapping[str, str]:
    owner = {_FIXED[name]: name for name in reversed(names) if name in _FIXED}
    hues = (*_HUES, *_MORE_HUES)
    free = cycle([hue for hue in hues if hue not in owner] or hues)
    keeps = set(owner.values())
    return {name: _FIXED[name] if name in keeps else next(free) for name in names}


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Draws the enclosed figures in a theme."""
    papers = ("figure.facecolor", "savefig.facecolor", "axes.facecolor")
    inks = ("axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "text.color")
    coloured: dict[Any, Any] = {
        **dict.fromkeys(papers, theme.paper),
        **dict.fromkeys(inks, theme.ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
        "axes.prop_cycle": cycler(color=_HUES),
    }
    with mpl.rc_context(coloured, fname=_LOOK):
        yield


def plain(text: str) -> str:
    """Returns a user's text as a figure shows it: a dollar is no sign of a formula."""
    return text.replace("$", r"\$")


def new_figure(title: str, *, height: float = 3.8, width: float = 6.4) -> tuple[Figure, Axes]:
    """Returns a figure with one pair of axes under a title; its size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plain(title))
    return figure, axes


def legend(figure: Figure, *, handles: Sequence[Artist] | None = None) -> None:
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
