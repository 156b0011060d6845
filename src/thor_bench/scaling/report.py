"""Tables and figure of a prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.style import Theme, colours, legend, new_figure
from thor_bench.report.tables import TextTable
from thor_bench.scaling.model import Assumptions, Network, Profile, StepTime, efficiency, step_time


@dataclass(frozen=True)
class Prediction:
    """Step times of all optimizers of a profile over some numbers of ranks.

    Attributes:
        profile: What one device needs.
        network: What connects them.
        steps: For each optimizer, in the profile's order, one step time per number of ranks.
    """

    profile: Profile
    network: Network
    steps: tuple[tuple[StepTime, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the optimizers."""
        return tuple(rule.name for rule in self.profile.rules)

    @property
    def title(self) -> str:
        """What is predicted, in a line."""
        batch = f"{self.profile.batch} samples a rank"
        return f"{self.profile.workload}, {batch}, {self.network.name}"


def predict(
    profile: Profile, network: Network, ranks: Sequence[int], assumptions: Assumptions
) -> Prediction:
    """Predicts every optimizer of a profile; the first number of ranks is what is compared with."""
    steps = tuple(
        tuple(step_time(profile, rule.name, network, n, assumptions) for n in ranks)
        for rule in profile.rules
    )
    return Prediction(profile, network, steps)


def step_table(prediction: Prediction) -> TextTable:
    """Returns step time and efficiency of each optimizer, one row per number of ranks."""
    headings = ["ranks"]
    for name in prediction.names:
        headings += [f"{name}, ms", "efficiency, %"]
    rows = []
    for steps in zip(*prediction.steps, strict=True):
        row = [str(steps[0].ranks)]
        for step, own in zip(steps, prediction.steps, strict=True):
            row += [f"{1e3 * step.total:.1f}", f"{100 * efficiency(own[0], step):.1f}"]
        rows.append(tuple(row))
    return TextTable(tuple(headings), tuple(rows))


def parts_table(prediction: Prediction) -> TextTable:
    """Returns every part of every step time, in milliseconds at full precision, for CSV."""
    rows = []
    for name, steps in zip(prediction.names, prediction.steps, strict=True):
        for step in steps:
            parts = (step.compute, step.gradients, step.statistics, step.inversion, step.total)
            cells = [f"{1e3 * part:.6g}" for part in parts]
            ratio = f"{efficiency(steps[0], step):.6g}"
            inverted = "owners" if step.owners else "everywhere"
            rows.append((name, str(step.ranks), *cells, ratio, inverted))
    headings = (
        "optimizer", "ranks", "compute_ms", "gradients_ms", "statistics_ms", "inversion_ms",
        "total_ms", "efficiency", "inverted",
    )  # fmt: skip
    return TextTable(headings, tuple(rows))


def profile_table(profiles: Sequence[Profile]) -> TextTable:
    """Returns what was measured and counted, one row per workload and optimizer."""
    rows = []
    for profile in profiles:
        training = 1e3 * (profile.forward + profile.backward)
        for rule in profile.rules:
            sent = rule.messages
            rows.append(
                (
                    f"{profile.workload}, {rule.name}",
                    str(profile.batch),
                    f"{training:.0f}",
                    f"{1e3 * rule.update:.1f}",
                    f"{1e3 * rule.statistics:.0f}",
                    f"{1e3 * rule.inversion:.0f}",
                    f"{sent.gradients / 1e6:.1f}",
                    f"{sent.statistics / 1e6:.1f}",
                )
            )
    headings = (
        "model, optimizer", "batch", "forward + backward, ms", "update, ms", "statistics, ms",
        "inversion, ms", "gradients, MB", "statistics, MB",
    )  # fmt: skip
    return TextTable(headings, tuple(rows))


def draw_efficiency(_theme: Theme, *, prediction: Prediction) -> Figure:
    """Draws efficiency over ranks, one curve per optimizer."""
    figure, axes = new_figure(prediction.title)
    palette = colours(prediction.names)
    for name, steps in zip(prediction.names, prediction.steps, strict=True):
        ranks = [step.ranks for step in steps]
        shares = [100 * efficiency(steps[0], step) for step in steps]
        axes.plot(ranks, shares, marker="o", markersize=3, color=palette[name], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([step.ranks for step in prediction.steps[0]])
    axes.set_xticklabels([str(step.ranks) for step in prediction.steps[0]], fontsize=7.5)
    axes.set(xlabel="ranks", ylabel="weak scaling efficiency, %")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def write_prediction(prediction: Prediction, directory: Path, stem: str) -> FigureFile:
    """Writes ``stem.md``, ``stem.csv`` and the figure.

    Args:
        prediction: What to write.
        directory: Where the files go; must exist.
        stem: Their name.
    """
    table = step_table(prediction).to_markdown()
    (directory / f"{stem}.md").write_text(table, encoding="utf-8")
    parts = parts_table(prediction).to_csv()
    (directory / f"{stem}.csv").write_text(parts, encoding="utf-8")
    draw = partial(draw_efficiency, prediction=prediction)
    return write_figure(directory, stem, prediction.title, draw)
