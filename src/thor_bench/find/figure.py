"""The curve of a search for settings, and the same in words."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.find.finder import Found, Trial
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.style import Theme, plain
from thor_bench.report.tables import TextTable

_BLOCKS = "▁▂▃▄▅▆▇█"


def draw(theme: Theme, *, found: Found) -> Figure:
    """Draws the loss after every single step over its rate, the usual rate and the one to take."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    place = figure.subplots()
    rates = [one.rate for one in found.rates]
    losses = [one.loss if math.isfinite(one.loss) else math.nan for one in found.rates]
    place.plot([one.rate for one in found.rates], losses, marker="o", markersize=4, color="#D55E00")
    place.axvline(found.usual, color=theme.faint, linestyle=(0, (4, 3)))
    place.axvline(found.rate, color="#0072B2", alpha=0.7)
    for rate, words, height in ((found.usual, "usual", 0.98), (found.rate, "to take", 0.1)):
        place.annotate(f" {words} {rate:.2g}", (rate, height), xycoords=("data", "axes fraction"),
                       va="top", fontsize=8.5)  # fmt: skip
    place.set_xscale("log")
    place.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
    place.minorticks_off()
    gained = found.start - found.best.loss
    if gained > 0:  # what got worse than it began leaves the picture
        place.set_ylim(found.best.loss - 0.08 * gained, found.start + 0.15 * gained)
    place.axhline(found.start, color=theme.faint, linewidth=0.8)
    place.set(xlabel="learning rate of the single step", ylabel="loss after it")
    title = f"{found.task}: a step after {found.way} at {found.gone:g}"
    figure.suptitle(plain(title), fontweight="bold", fontsize=11)
    return figure


def write(found: Found, directory: Path) -> FigureFile:
    """Writes the curve as PNG, for light and for dark pages, to a folder that is there."""
    return write_figure(directory, "find", "Single steps", lambda theme: draw(theme, found=found))


def table(found: Found) -> TextTable:
    """One row for every single step."""
    rows = [(f"{one.rate:.2g}", _loss(one), _mark(one, found)) for one in found.rates]
    return TextTable(("rate", f"loss after a step, {found.start:.4g} before", ""), tuple(rows))


def line(found: Found) -> str:
    """The losses of all rates in blocks, lowest where it is best; × where nothing was gained."""
    low, span = found.best.loss, found.start - found.best.loss
    return "".join(
        _BLOCKS[round((one.loss - low) / span * (len(_BLOCKS) - 1))]
        if one.loss < found.start
        else "×"
        for one in found.rates
    )


def _loss(trial: Trial) -> str:
    return f"{trial.loss:.4g}" if math.isfinite(trial.loss) else "diverged"


def _mark(trial: Trial, found: Found) -> str:
    words = ["usual"] if trial.rate == found.usual else []
    return ", ".join([*words, "best"] if trial is found.best else words)
