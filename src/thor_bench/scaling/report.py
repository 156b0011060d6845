"""Tables and figure of a prediction, and the paper's own times beside it."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.paper import published
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.style import Theme, colours, legend, new_figure
from thor_bench.report.tables import TextTable
from thor_bench.scaling.model import Assumptions, Network, Profile, StepTime, step_time

StepTimes = Mapping[str, Sequence[StepTime]]  # of each optimizer, over some numbers of ranks

_IMAGES = 1_281_167  # ImageNet's training set
_DEVICES = 8  # of the paper's Table 4


def predict(
    profile: Profile, network: Network, ranks: Sequence[int], assumptions: Assumptions
) -> StepTimes:
    """Predicts every optimizer of a profile."""
    return {
        rule.name: [step_time(profile, rule.name, network, n, assumptions) for n in ranks]
        for rule in profile.rules
    }


def step_table(steps: StepTimes) -> TextTable:
    """Returns step time and efficiency of each optimizer, one row per number of ranks."""
    headings = [[f"{name}, ms", "efficiency, %"] for name in steps]
    rows = []
    for at in zip(*steps.values(), strict=True):
        cells = [(f"{1e3 * one.total:.1f}", f"{100 * one.efficiency:.1f}") for one in at]
        rows.append((str(at[0].ranks), *chain(*cells)))
    return TextTable(("ranks", *chain(*headings)), tuple(rows))


def parts_table(steps: StepTimes) -> TextTable:
    """Returns every part of every step time, in milliseconds at six digits, for CSV."""
    parts = ("compute", "gradients", "statistics", "inversion", "total")
    return TextTable.of(
        {
            "optimizer": name,
            "ranks": str(step.ranks),
            **{f"{part}_ms": f"{1e3 * getattr(step, part):.6g}" for part in parts},
            "efficiency": f"{step.efficiency:.6g}",
            "inverted": "owners" if step.owners else "everywhere",
        }
        for name, over in steps.items()
        for step in over
    )


def profile_table(profiles: Sequence[Profile]) -> TextTable:
    """Returns what was measured and counted, one row per workload and optimizer."""
    return TextTable.of(
        {
            "model, optimizer": f"{profile.workload}, {rule.name}",
            "batch": str(profile.batch),
            "forward + backward, ms": f"{1e3 * (profile.forward + profile.backward):.0f}",
            "update, ms": f"{1e3 * rule.update:.1f}",
            "statistics, ms": f"{1e3 * rule.statistics:.0f}",
            "inversion, ms": f"{1e3 * rule.inversion:.0f}",
            "gradients, MB": f"{rule.messages.gradients / 1e6:.1f}",
            "statistics, MB": f"{rule.messages.statistics / 1e6:.1f}",
        }
        for profile in profiles
        for rule in profile.rules
    )


def like_ascend(profile: Profile, network: Network, assumptions: Assumptions) -> Profile:
    """Scales the profile of ResNet-50 so that SGD on 8 devices takes the paper's 90 s an epoch."""
    epoch = published.number(published.TABLE_4, "SGD", "s/epoch")
    aim = epoch / (_IMAGES // (_DEVICES * profile.batch))
    low, high = 0.0, aim / (profile.forward + profile.backward)
    for _ in range(60):  # halving: the step grows with the factor
        middle = (low + high) / 2
        step = step_time(profile.times(middle), "sgd", network, _DEVICES, assumptions)
        low, high = (middle, high) if step.total < aim else (low, middle)
    return profile.times(high)


def paper_table(profile: Profile, network: Network, assumptions: Assumptions) -> TextTable:
    """Returns the paper's Table 5 beside the model's times.

    The paper gives no epochs for its large batches: the table says how many its minutes would be
    at the model's step, and what its own THOR at batch 256 needed (Table 4) would take.
    """
    scaled = like_ascend(profile, network, assumptions)
    seconds, per_epoch = (
        published.number(published.TABLE_4, "THOR", name) for name in ("s to 75.9 %", "s/epoch")
    )
    epochs = seconds / per_epoch
    rows = []
    for devices, batch, minutes in published.times_of_thor():
        step = step_time(scaled, "thor", network, devices, assumptions).total
        epoch = step * (_IMAGES // batch)
        rows.append(
            {
                "devices": str(devices),
                "batch": str(batch),
                "THOR step, ms": f"{1e3 * step:.2f}",
                "epoch, s": f"{epoch:.2f}",
                f"{epochs:.0f} epochs, min": f"{epochs * epoch / 60:.1f}",
                "the paper, min": f"{minutes:.1f}",
                "epochs in the paper's time": f"{60 * minutes / epoch:.1f}",
            }
        )
    return TextTable.of(rows)


def draw_efficiency(theme: Theme, *, steps: StepTimes, title: str) -> Figure:
    """Draws efficiency over ranks, one curve per optimizer."""
    figure, axes = new_figure(title)
    palette = colours(list(steps), theme)
    ranks: list[int] = []
    for name, over in steps.items():
        ranks = [step.ranks for step in over]
        shares = [100 * step.efficiency for step in over]
        axes.plot(ranks, shares, marker="o", markersize=3, color=palette[name], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(n) for n in ranks], fontsize=7.5)
    axes.set(xlabel="ranks", ylabel="weak scaling efficiency, %")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def write_steps(steps: StepTimes, title: str, stem: Path) -> FigureFile:
    """Writes ``stem.md``, ``stem.csv`` and the figure."""
    step_table(steps).write(stem.parent, stem.name, numbers=parts_table(steps).to_csv())
    draw = partial(draw_efficiency, steps=steps, title=title)
    return write_figure(stem.parent, stem.name, title, draw)
