"""The pages of a study: tables of trials and winners, the figure of times, all studies' profile."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from thor_bench.compare import read_comparison
from thor_bench.errors import BenchError, reason
from thor_bench.records.config import RunConfig
from thor_bench.records.reading import find_runs
from thor_bench.records.task_card import Measure, number_text
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.page import how_it_ended, write_report
from thor_bench.report.style import Theme, colours, legend, new_figure
from thor_bench.report.summary import measured
from thor_bench.report.tables import TextTable
from thor_bench.tasks import find_task
from thor_bench.tune.search import searched
from thor_bench.tune.tuned import Tuned, tuned
from thor_bench.tune.tuning import WINNERS_FOLDER, StudyResult


@dataclass(frozen=True)
class StudyReport:
    """What was written about a study."""

    title: str  # what was tuned, and for what
    table: TextTable  # the winners
    page: Path  # about their fresh seeds
    figure: FigureFile  # their times
    profile: FigureFile | None  # over all studies beside this one; None for a single one


def write_study(result: StudyResult) -> StudyReport:
    """Writes tables, figure and page of a study, and the profile over all studies beside it.

    Raises:
        BenchError: The folder cannot be written.
    """
    metric = find_task(result.study.workload).metric
    goal = f"{metric.name} {metric.goal(result.target)}"
    rows = tuned(result)
    directory = result.directory
    table = tuned_table(result, rows, metric)
    command = f"{result.study.command} --out {directory.parent}"
    try:
        table.write(directory, "tuned", numbers=tuned_csv(rows, result.target))
        trials_table(result, metric).write(directory, "trials")
        draw = partial(draw_times, result=result, rows=rows, goal=goal)
        figure = write_figure(directory, "times", f"Seconds to {goal}", draw)
        page = write_report(directory / WINNERS_FOLDER, command=command).page
        profile = write_profile(directory.parent)
    except OSError as error:
        message = f"{directory} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; repeat the command when it can") from error
    return StudyReport(f"{result.study.workload}, tuned: {goal}", table, page, figure, profile)


def tuned_table(result: StudyResult, rows: Sequence[Tuned], metric: Measure) -> TextTable:
    """Returns the winners: medians over fresh seeds, with bootstrap intervals."""
    headings = (
        "optimizer", f"s to {metric.goal(result.target)}", "÷ first-order", "steps", "missed",
        "trial", "settings",
    )  # fmt: skip
    cells = tuple(
        (
            row.optimizer,
            row.seconds.text(2),
            row.ratio.text(2),
            number_text(row.steps.median, 0),
            f"{row.misses}/{row.runs}",
            str(row.trial),
            _settings(result.winners[row.optimizer].run.config),
        )
        for row in rows
    )
    return TextTable(headings, cells)


def tuned_csv(rows: Sequence[Tuned], target: float) -> str:
    """Returns every number of the winners at full precision."""
    table = pl.json_normalize([asdict(row) for row in rows], separator="_")
    named = table.rename(lambda name: name.replace("_median", "_value"))
    return named.insert_column(1, pl.lit(target).alias("target")).write_csv()


def trials_table(result: StudyResult, metric: Measure) -> TextTable:
    """Returns every trial: what it searched, what it reached, how it ended."""
    order = result.study.optimizers.index
    trials = sorted(result.trials, key=lambda one: (order(one.optimizer), one.number))
    numbers = measured([one.run for one in trials], result.target).fill_null(math.nan)
    rows = tuple(
        (
            one.optimizer,
            str(one.number),
            number_text(row["seconds"], 2),
            number_text(row["steps"], 0),
            number_text(row["best_metric"], metric.digits),
            how_it_ended(one.run),
            _settings(one.run.config),
        )
        for one, row in zip(trials, numbers.iter_rows(named=True), strict=True)
    )
    goal = metric.goal(result.target)
    headings = ("optimizer", "trial", f"s to {goal}", "steps", "best", "state", "settings")
    return TextTable(headings, rows)


def _settings(config: RunConfig) -> str:
    return ", ".join(f"{key}={value:.4g}" for key, value in searched(config).items())


def draw_times(theme: Theme, *, result: StudyResult, rows: Sequence[Tuned], goal: str) -> Figure:
    """Draws each seed's time to the target, with the median and its interval."""
    figure, axes = new_figure(f"Seconds to {goal}, tuned alike", height=1.4 + 0.42 * len(rows))
    palette = colours([row.optimizer for row in rows], theme)
    runs = measured(result.runs, result.target).select("optimizer", "seconds")
    right = 1.08 * max(filter(math.isfinite, runs["seconds"]), default=1.0)
    for place, row in enumerate(rows):
        shown = runs.filter(optimizer=row.optimizer)["seconds"].clip(upper_bound=right)
        colour = palette[row.optimizer]
        axes.scatter(shown, [place] * len(shown), color=colour, s=16, alpha=0.7, zorder=3)
        if math.isfinite(row.seconds.median):
            low, high = row.seconds.low, min(row.seconds.high, right)
            axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.35)
            axes.plot(row.seconds.median, place, marker="|", color=theme.ink, markersize=14)
    if any(row.misses for row in rows):
        axes.axvline(right, color=theme.faint, linestyle=(0, (4, 3)))
        axes.annotate(" missed", (right, -0.55), fontsize=8, ha="right", color=theme.ink)
    axes.set_yticks(range(len(rows)), [row.optimizer for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlim(0, 1.02 * right)
    axes.set(xlabel="training time, s (dots: seeds; bar: 95 % interval of the median)")
    return figure


def write_profile(directory: Path) -> FigureFile | None:
    """Writes the performance profile over the studies in a folder, where there are several.

    Args:
        directory: Folder whose subfolders are studies.
    """
    times = slowdowns(read_medians(directory))
    workloads = times["workload"].unique(maintain_order=True).to_list()
    if len(workloads) < 2:
        return None
    rows = times.pivot("workload", index="optimizer", values="slowdown").fill_null(math.inf)
    cells = tuple(
        (name, *(number_text(x, 2) for x in values)) for name, *values in rows.iter_rows()
    )
    table = TextTable(("÷ the best", *workloads), cells)
    table.write(directory, "profile")
    draw = partial(draw_profile, times=times, workloads=len(workloads))
    return write_figure(directory, "profile", "Performance profile", draw)


def read_medians(directory: Path) -> pl.DataFrame:
    """Returns, by workload and optimizer, the median time to the target of finished studies.

    Args:
        directory: Folder whose subfolders are studies.
    """
    kinds = {"workload": pl.String, "optimizer": pl.String, "seconds": pl.Float64}
    found = [pl.DataFrame(schema=kinds)]
    for folder in sorted(directory.glob(f"*/{WINNERS_FOLDER}")):
        comparison = read_comparison(folder)
        runs = [run for run in find_runs(folder) if run.end is not None]
        if comparison is None or comparison.target is None:
            continue
        if len(runs) >= len(comparison.runs):
            rows = measured(runs, comparison.target).with_columns(
                workload=pl.lit(comparison.workload)
            )
            by = rows.group_by("workload", "optimizer", maintain_order=True)
            found.append(by.agg(pl.col("seconds").median()))
    return pl.concat(found)


def slowdowns(medians: pl.DataFrame) -> pl.DataFrame:
    """Adds each optimizer's time ÷ the best one's; infinite where it missed the target."""
    slowdown = pl.col("seconds") / pl.col("seconds").min().over("workload")
    return medians.with_columns(
        slowdown=pl.when(pl.col("seconds").is_finite()).then(slowdown).otherwise(math.inf)
    )


def draw_profile(
    theme: Theme, *, times: pl.DataFrame, workloads: int, measure: str = "time"
) -> Figure:
    """Draws on how many workloads each optimizer is within a factor of the best (Dolan, Moré)."""
    figure, axes = new_figure(f"Performance profile over {workloads} workloads")
    arrived = times.filter(pl.col("slowdown").is_finite()).sort("slowdown")
    right = 1.1 * max(arrived["slowdown"], default=2.0)
    palette = colours(times["optimizer"].unique(maintain_order=True).to_list(), theme)
    for name, colour in palette.items():
        edges = arrived.filter(optimizer=name)["slowdown"].to_list()
        across = [1.0, *edges, right]
        shares = [sum(edge <= x for edge in edges) / workloads for x in across]
        axes.step(across, shares, where="post", color=colour, label=name)
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.set(xlim=(1.0, right), ylim=(-0.03, 1.05))
    axes.set(xlabel=f"{measure} ÷ the best optimizer's", ylabel="share of workloads within it")
    legend(figure)
    return figure
