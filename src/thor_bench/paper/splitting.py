"""Choosing the split: Table 1 and Figure 5 for a workload, measured on this device."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.records.disk import written_whole
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.style import Theme
from thor_bench.report.tables import TextTable
from thor_bench.tasks import Workload
from thor_bench.training import rundir
from thor_bench.training.session import Session
from torch_thor import SplitCurves, SplitMeasurement, measure_split

SPLIT_FILE = "split.json"

# Table 1 of the paper: ResNet-50 on an Ascend 910
PAPER_CURVES = SplitCurves(
    sizes=(1, 16, 32, 64, 128, 256, 512, 1024, 2048),
    kept=(0.0741, 0.0741, 0.0926, 0.1667, 0.2407, 0.4259, 0.5926, 0.8519, 0.8889),
    speed=(1.0, 0.6014, 0.4276, 0.2939, 0.1669, 0.0664, 0.0250, 0.0095, 0.0036),
)

_ADAPTER = TypeAdapter(SplitMeasurement)


@dataclass(frozen=True)
class SplitReport:
    """What was measured, and where it is written.

    Attributes:
        measurement: The measurement.
        table: Table 1 for this workload and device.
        layers: What each layer loses, and the size that suits it.
        figure: Figure 5.
        conclusion: Crossing and choice, in words.
    """

    measurement: SplitMeasurement
    table: TextTable
    layers: TextTable
    figure: FigureFile
    conclusion: str


def measure(workload: Workload, source: DataSource, *, device: str, seed: int) -> SplitMeasurement:
    """Measures a workload's factors on its first batch, and inversions on a device.

    Args:
        workload: What is trained.
        source: Where data may be found.
        device: torch device.
        seed: Seed of weights and order.

    Raises:
        BenchError: Data are missing, or the device cannot be used.
    """
    config = plan_run(workload, "sgd", seed=seed, options=RunOptions(device=device))
    session = Session(config, workload, source)
    batch = next(iter(session.data.batches(0)))

    def backward() -> None:
        session.loss(batch).backward()  # type: ignore[no-untyped-call]

    return measure_split(session.model, backward)


def measured(
    workload: Workload, directory: Path, source: DataSource, *, device: str, seed: int
) -> SplitMeasurement:
    """Returns the measurement in a folder, or measures and writes it there.

    Raises:
        BenchError: As ``measure``, or the file is broken.
    """
    path = directory / SPLIT_FILE
    if path.exists():
        try:
            return _ADAPTER.validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            message = f"{path} cannot be read ({reason(error)[:120]})"
            raise BenchError(f"{message}; remove it") from error
    rundir.make_directory(directory)
    found = measure(workload, source, device=device, seed=seed)
    with written_whole(path) as file:
        file.write(_ADAPTER.dump_json(found, indent=1) + b"\n")
    return found


def report_split(measurement: SplitMeasurement, title: str, directory: Path) -> SplitReport:
    """Writes tables and figure of a measurement.

    Args:
        measurement: What was measured.
        title: What it was measured on.
        directory: Where the files go; must exist.
    """
    table, layers = table_1(measurement), layer_table(measurement)
    for stem, one in (("table-1", table), ("split-layers", layers)):
        (directory / f"{stem}.md").write_text(one.to_markdown(), encoding="utf-8")
        (directory / f"{stem}.csv").write_text(one.to_csv(), encoding="utf-8")
    figure = write_figure(
        directory,
        "figure-5",
        f"Split curves, {title}",
        partial(draw_curves, curves=measurement.curves, title=title),
        pdf=True,
    )
    return SplitReport(measurement, table, layers, figure, _conclusion(measurement))


def table_1(measurement: SplitMeasurement) -> TextTable:
    """Returns the paper's Table 1 for a measurement."""
    curves = measurement.curves
    total = len(measurement.layers)
    rows = (
        (f"factors with L < 1 % (of {total})", *map(str, measurement.counts)),
        ("time, µs", *(f"{1e6 * time:.0f}" for time in measurement.seconds)),
        ("normalized loss", *(f"{value:.4f}" for value in curves.kept)),
        ("normalized speed", *(f"{value:.4f}" for value in curves.speed)),
    )
    return TextTable(("size", *map(str, measurement.sizes)), rows)


def layer_table(measurement: SplitMeasurement) -> TextTable:
    """Returns what each layer loses at the paper's choice, and which size suits it best."""
    choice = measurement.curves.choice()
    at = measurement.sizes.index(choice)
    rows = tuple(
        (
            layer.layer or "(model)",
            str(layer.columns),
            f"{100 * layer.loss[at]:.2f}",
            f"{layer.divergence[at]:.1f}",
            f"{layer.divergence[0]:.1f}",
            f"{1e6 * layer.seconds[at]:.0f}",
            str(layer.choice(measurement.sizes)),
        )
        for layer in measurement.layers
    )
    headings = (
        "layer",
        "rows of A",
        f"L at {choice}, %",
        f"divergence at {choice}, nats",
        "at 1, nats",
        f"µs at {choice}",
        "choice by divergence",
    )
    return TextTable(headings, rows)


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
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"Split of {title}")
    place = range(len(curves.sizes))
    axes.plot(place, curves.kept, marker="o", markersize=3.5, label="factors that lose < 1 %")
    axes.plot(place, curves.speed, marker="o", markersize=3.5, label="speed of an inversion")
    chosen = curves.sizes.index(curves.choice())
    size, height = curves.crossing()
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
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure
