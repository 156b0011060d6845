"""The pages of a study: tables of trials and winners, the figure of times, all studies' profile."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from thor_bench.compare import read_comparison
from thor_bench.errors import BenchError, reason
from thor_bench.records.reading import find_runs
from thor_bench.records.records import RunFailed, RunFinished
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.page import write_report
from thor_bench.report.style import Theme, colours, legend, new_figure
from thor_bench.report.summary import group_by_optimizer, reached
from thor_bench.report.tables import TextTable, number_text
from thor_bench.tasks import Metric, find_workload
from thor_bench.tune.search import search_space, searched
from thor_bench.tune.study import STUDY_FILE, WINNERS_FOLDER
from thor_bench.tune.trials import Finished
from thor_bench.tune.tuned import Tuned, median_of, tuned
from thor_bench.tune.tuning import StudyResult


@dataclass(frozen=True)
class StudyReport:
    """What was written about a study.

    Attributes:
        title: What was tuned, and for what.
        table: The winners.
        page: Page about the winners' fresh seeds.
        figure: Their times.
        profile: Performance profile over all studies beside this one; None for a single one.
    """

    title: str
    table: TextTable
    page: Path
    figure: FigureFile
    profile: FigureFile | None


def write_study(result: StudyResult) -> StudyReport:
    """Writes tables, figure and page of a study, and the profile over all studies beside it.

    Raises:
        BenchError: The folder cannot be written.
    """
    metric = find_workload(result.study.workload).metric
    goal = f"{metric.name} {metric.goal(result.target)}"
    rows = tuned(result)
    directory = result.directory
    table = tuned_table(rows, metric, result.target)
    command = f"{result.study.command} --out {directory.parent}"
    try:
        for stem, one in (("tuned", table), ("trials", trials_table(result, metric))):
            (directory / f"{stem}.md").write_text(one.to_markdown(), encoding="utf-8")
        (directory / "tuned.csv").write_text(tuned_csv(rows, result.target), encoding="utf-8")
        (directory / "trials.csv").write_text(
            trials_table(result, metric).to_csv(), encoding="utf-8"
        )
        draw = partial(draw_times, result=result, rows=rows, goal=goal)
        figure = write_figure(directory, "times", f"Seconds to {goal}", draw)
        page = write_report(directory / WINNERS_FOLDER, command=command).page
        profile = write_profile(directory.parent)
    except OSError as error:
        message = f"{directory} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; repeat the command when it can") from error
    return StudyReport(f"{result.study.workload}, tuned: {goal}", table, page, figure, profile)


def tuned_table(rows: Sequence[Tuned], metric: Metric, target: float) -> TextTable:
    """Returns the winners: medians over fresh seeds, with bootstrap intervals."""
    headings = (
        "optimizer", f"s to {metric.goal(target)}", "÷ first-order", "steps", "missed", "trial",
        "settings",
    )  # fmt: skip
    cells = tuple(
        (
            row.optimizer,
            str(row.seconds),
            "–" if row.ratio is None else str(row.ratio),
            number_text(row.steps.value, 0),
            f"{row.misses}/{row.runs}",
            str(row.winner.trial.number),
            ", ".join(f"{key}={value:.4g}" for key, value in _searched(row.winner)),
        )
        for row in rows
    )
    return TextTable(headings, cells)


def tuned_csv(rows: Sequence[Tuned], target: float) -> str:
    """Returns every number of the winners at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{name}_{part}" for name in ("seconds", "steps", "ratio") for part in _PARTS]
    writer.writerow(["optimizer", "target", "runs", "misses", "trial", *names])
    for row in rows:
        estimates = (row.seconds, row.steps, row.ratio)
        numbers = [
            None if one is None else getattr(one, part) for one in estimates for part in _PARTS
        ]
        number = row.winner.trial.number
        writer.writerow([row.optimizer, target, row.runs, row.misses, number, *numbers])
    return text.getvalue()


_PARTS = ("value", "low", "high")


def trials_table(result: StudyResult, metric: Metric) -> TextTable:
    """Returns every trial: what it searched, what it reached, how it ended."""
    rows = []
    for one in sorted(result.trials, key=lambda t: result.study.optimizers.index(t.optimizer)):
        hit = reached(one.run, metric, result.target)
        values = [record.test_metric for record in one.run.evaluations]
        rows.append(
            (
                one.optimizer,
                str(one.trial.number),
                number_text(hit.seconds, 2),
                number_text(hit.steps, 0),
                number_text(metric.best(values), metric.digits) if values else "–",
                _ended(one),
                ", ".join(f"{key}={value:.4g}" for key, value in _searched(one)),
            )
        )
    goal = metric.goal(result.target)
    headings = ("optimizer", "trial", f"s to {goal}", "steps", "best", "ended", "settings")
    return TextTable(headings, tuple(rows))


def _searched(one: Finished) -> tuple[tuple[str, float], ...]:
    config = one.trial.config
    return searched(config, search_space(find_workload(config.workload), config.optimizer))


def _ended(one: Finished) -> str:
    match one.run.end:
        case RunFinished(ended=why):
            return why or "at the horizon"
        case RunFailed(reason=why):
            return f"failed: {why}"
        case None:
            return "not finished"


def draw_times(theme: Theme, *, result: StudyResult, rows: Sequence[Tuned], goal: str) -> Figure:
    """Draws each seed's time to the target, with the median and its interval."""
    figure, axes = new_figure(f"Seconds to {goal}, tuned alike", height=1.4 + 0.42 * len(rows))
    palette = colours([row.optimizer for row in rows])
    metric = find_workload(result.study.workload).metric
    times = {
        name: [reached(run, metric, result.target).seconds for run in runs]
        for name, runs in group_by_optimizer(result.runs).items()
    }
    arrived = [time for of_seeds in times.values() for time in of_seeds if math.isfinite(time)]
    right = 1.08 * max(arrived, default=1.0)
    for place, row in enumerate(rows):
        shown = [min(time, right) for time in times[row.optimizer]]
        colour = palette[row.optimizer]
        axes.scatter(shown, [place] * len(shown), color=colour, s=16, alpha=0.7, zorder=3)
        if math.isfinite(row.seconds.value):
            low, high = row.seconds.low, min(row.seconds.high, right)
            axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.35)
            axes.plot(row.seconds.value, place, marker="|", color=theme.ink, markersize=14)
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
    medians = read_medians(directory)
    if len(medians) < 2:
        return None
    table = profile_table(medians)
    (directory / "profile.md").write_text(table.to_markdown(), encoding="utf-8")
    (directory / "profile.csv").write_text(table.to_csv(), encoding="utf-8")
    draw = partial(draw_profile, medians=medians)
    return write_figure(directory, "profile", "Performance profile", draw)


def read_medians(directory: Path) -> dict[str, dict[str, float]]:
    """Returns, by workload and optimizer, the median time to the target of finished studies.

    Args:
        directory: Folder whose subfolders are studies.
    """
    medians = {}
    for path in sorted(directory.glob(f"*/{STUDY_FILE}")):
        folder = path.parent / WINNERS_FOLDER
        comparison = read_comparison(folder)
        if comparison is None:
            continue
        runs = [run for run in find_runs(folder) if run.end is not None]
        if len(runs) < len(comparison.runs):
            continue
        metric = find_workload(comparison.workload).metric
        medians[comparison.workload] = {
            name: median_of(
                [reached(run, metric, comparison.target).seconds for run in group]
            ).value
            for name, group in group_by_optimizer(runs).items()
        }
    return medians


Medians = Mapping[str, Mapping[str, float]]


def slowdowns(medians: Medians) -> dict[str, list[float]]:
    """Returns each optimizer's time ÷ the best one's, workload by workload.

    Infinite where an optimizer missed the target, or was not tuned on the workload.
    """
    names = list(dict.fromkeys(name for row in medians.values() for name in row))
    best = {workload: min(row.values()) for workload, row in medians.items()}
    return {
        name: [
            row[name] / best[workload] if math.isfinite(row.get(name, math.inf)) else math.inf
            for workload, row in medians.items()
        ]
        for name in names
    }


def profile_table(medians: Medians) -> TextTable:
    """Returns the slowdowns, one row per optimizer."""
    rows = tuple(
        (name, *(number_text(value, 2) for value in values))
        for name, values in slowdowns(medians).items()
    )
    return TextTable(("÷ the best", *medians), rows)


def draw_profile(_theme: Theme, *, medians: Medians) -> Figure:
    """Draws on how many workloads each optimizer is within a factor of the best (Dolan, Moré)."""
    figure, axes = new_figure(f"Performance profile over {len(medians)} workloads")
    found = slowdowns(medians)
    finite = [value for values in found.values() for value in values if math.isfinite(value)]
    right = 1.1 * max(finite, default=2.0)
    palette = colours(list(found))
    for name, values in found.items():
        edges = sorted(value for value in values if math.isfinite(value))
        across = [1.0, *edges, right]
        shares = [float(np.mean([value <= x for value in values])) for x in across]
        axes.step(across, shares, where="post", color=palette[name], label=name)
    axes.set_xscale("log")
    axes.set(xlim=(1.0, right), ylim=(-0.03, 1.05))
    axes.set(xlabel="time ÷ the best optimizer's", ylabel="share of workloads within it")
    legend(figure)
    return figure
