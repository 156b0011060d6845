"""Choosing the split: Table 1 and Figure 5 for a workload, measured on this device."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.records.disk import measured_once
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.style import Theme, legend, new_figure
from thor_bench.report.tables import TextTable
from thor_bench.tasks import Task
from thor_bench.training.session import Session
from torch_thor import SplitCurves, SplitMeasurement, measure_split

SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class SplitReport:
    """What is written about a measurement."""

    table: TextTable  # Table 1 for this workload and device
    layers: TextTable  # what each layer loses, and the size that suits it
    figure: FigureFile  # Figure 5
    conclusion: str  # crossing and choice, in words


def measure(workload: Task, source: DataSource, *, device: str, seed: int) -> SplitMeasurement:
    """Measures a workload's factors on its first batch, and inversions on a device.

    Raises:
        BenchError: Data are missing, or the device cannot be used.
    """
    config = plan_run(workload, "sgd", seed=seed, options=RunOptions(device=device))
    session = Session(config, workload, source)
    batch = next(iter(session.data.batches(0)))

    def backward() -> None:
        session.loss(batch).backward()

    return measure_split(session.model, backward)


def measured(
    workload: Task, directory: Path, source: DataSource, *, device: str, seed: int
) -> SplitMeasurement:
    """Returns the measurement in a folder, or measures and writes it there.

    Raises:
        BenchError: As ``measure``, or the file is broken.
    """
    now = partial(measure, workload, source, device=device, seed=seed)
    return measured_once(directory / SPLIT_FILE, SplitMeasurement, now, remedy="remove it")


def report_split(measurement: SplitMeasurement, title: str, directory: Path) -> SplitReport:
    """Writes tables and figure of a measurement; the title says on what it was made."""
    table, layers = table_1(measurement), layer_table(measurement)
    table.write(directory, "table-1")
    layers.write(directory, "split-layers")
    draw = partial(draw_curves, curves=measurement.curves, title=title)
    figure = write_figure(directory, "figure-5", f"Split curves, {title}", draw, pdf=True)
    return SplitReport(table, layers, figure, _conclusion(measurement))


def table_1(measurement: SplitMeasurement) -> TextTable:
    """Returns the paper's Table 1 for a measurement."""
    curves = measurement.curves
    rows = (
        (f"factors with L < 1 % (of {len(measurement.layers)})", *map(str, measurement.counts)),
        ("time, µs", *(f"{1e6 * time:.0f}" for time in measurement.seconds)),
        ("normalized loss", *(f"{value:.4f}" for value in curves.kept)),
        ("normalized speed", *(f"{value:.4f}" for value in curves.speed)),
    )
    return TextTable(("size", *map(str, measurement.sizes)), rows)


def layer_table(measurement: SplitMeasurement) -> TextTable:
    """Returns what each layer loses at the paper's choice, and which size suits it best."""
    choice = measurement.curves.choice()
    at = measurement.sizes.index(choice)
    return TextTable.of(
        {
            "layer": layer.layer or "(model)",
            "rows of A": str(layer.columns),
            f"L at {choice}, %": f"{100 * layer.loss[at]:.2f}",
            f"divergence at {choice}, nats": f"{layer.divergence[at]:.1f}",
            "at 1, nats": f"{layer.divergence[0]:.1f}",
            f"µs at {choice}": f"{1e6 * layer.seconds[at]:.0f}",
            "choice by divergence": str(layer.choice(measurement.sizes)),
        }
        for layer in measurement.layers
    )


def _conclusion(measurement: SplitMeasurement) -> str:
    curves = measurement.curves
    size, height = curves.crossing()
    votes = Counter(layer.choice(measurement.sizes) for layer in measurement.layers)
    named = ", ".join(f"{block} ({count})" for block, count in sorted(votes.items()))
    return (
        f"The curves cross at ({size:.1f}, {height:.2f}): split {curves.choice()}. "
        f"By divergence per microsecond, block size (layers): {named}."
    )


def draw_curves(theme: Theme, *, curves: SplitCurves, title: str) -> Figure:
    """Draws the paper's Figure 5: information kept, speed, and where they cross."""
    figure, axes = new_figure(f"Split of {title}")
    place = range(len(curves.sizes))
    axes.plot(place, curves.kept, marker="o", markersize=3.5, label="factors that lose < 1 %")
    axes.plot(place, curves.speed, marker="o", markersize=3.5, label="speed of an inversion")
    size, height = curves.crossing()
    chosen = curves.sizes.index(curves.choice())
    axes.axvline(chosen, color=theme.faint, linewidth=1.2, zorder=0)
    axes.annotate(
        f"crossing ({size:.1f}, {height:.2f})\nsplit {curves.choice()}",
        (chosen, height),
        xytext=(10, 28),
        textcoords="offset points",
        fontsize=8.5,
    )
    axes.set_xticks(place, [str(size) for size in curves.sizes])
    axes.set(xlabel="block size", ylabel="normalized value", ylim=(-0.03, 1.05))
    legend(figure)
    return figure
