"""The page of a league: standings, profiles, tasks, pairs, settings."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl

from thor_bench.errors import BenchError, reason
from thor_bench.league.plan import target_of
from thor_bench.league.running import LeagueResult
from thor_bench.league.standings import (
    MEASURES,
    SIGNIFICANT,
    Pair,
    Standing,
    medians,
    pairs,
    results,
    standings,
)
from thor_bench.records.config import DataSource
from thor_bench.records.task_card import number_text
from thor_bench.report.differences import written
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.page import Section, render, run_list
from thor_bench.report.tables import TextTable
from thor_bench.tasks import find_task
from thor_bench.tune.study_report import draw_profile, slowdowns


@dataclass(frozen=True)
class LeagueReport:
    """What was written about a league."""

    table: TextTable  # the standings
    page: Path


def write_league(result: LeagueResult) -> LeagueReport:
    """Writes the standings, every run (CSV), tasks, profiles (PNG) and one HTML page.

    Raises:
        BenchError: The folder cannot be written.
    """
    league, directory = result.league, result.directory
    name = "league" if league.search == 1 else f"league-best-of-{league.search}"
    page, found = directory / f"{name}.html", results(result.runs)
    rows = standings(found)
    table = standings_table(rows, tasks=len(league.tasks))
    try:
        table.write(directory, name, numbers=found.write_csv())
        tasks = [tasks_table(found, measure, ranges=True).to_markdown() for measure in MEASURES]
        (directory / f"{name}-tasks.md").write_text("\n".join(tasks), encoding="utf-8")
        html = render(
            "sections.html.j2",
            title=f"League of {_count(rows, 'optimizer')} on {_count(league.tasks, 'task')}",
            what=_what(result),
            lead=lead(rows, tasks=len(league.tasks), seeds=league.seeds),
            sections=list(_sections(result, found, table, name)),
            command=DataSource().again(league.command, directory),
            runs=run_list(result.runs),
            machines=sorted({str(run.started.machine) for run in result.runs}),
        )
        page.write_text(html, encoding="utf-8")
    except OSError as error:
        message = f"--out {directory} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; repeat the command when it can") from error
    return LeagueReport(table, page)


def _what(result: LeagueResult) -> str:
    league = result.league
    if league.search == 1:
        setting = "its authors' defaults"
    else:
        setting = f"the best of {league.search} factors of its rates, the same for all tasks"
    return (
        f"Each optimizer with one setting: {setting}. {_count(range(league.seeds), 'seed')}; 5 % "
        "warm-up, then linear to zero (a rule with a schedule of its own keeps that); each task "
        "has one budget of steps."
    )


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def lead(rows: Sequence[Standing], *, tasks: int, seeds: int) -> str:
    """Returns who is first, in a sentence."""
    best = rows[0]
    if best.missed_tasks == tasks:
        return "No optimizer reached a target with most of its seeds."
    if len(rows) == 1:
        reached = tasks - best.missed_tasks
        return f"{best.optimizer} ran alone: it reached {reached} of {tasks} targets."
    firsts = " and ".join(f"on {best.first[key]} by {key}" for key in MEASURES)
    count = "the one task" if tasks == 1 else f"{tasks} tasks"
    told = f"{best.optimizer} leads by seconds: of {count} it is first {firsts}."
    return told if seeds > 1 else f"{told} One seed says little: another may order them otherwise."


def _sections(
    result: LeagueResult, found: pl.DataFrame, table: TextTable, name: str
) -> Iterator[Section]:
    middle = medians(found)
    yield Section(
        "Standings",
        [
            (
                "“÷ best other” is the median over tasks of an optimizer's median over seeds ÷ the "
                "best other optimizer's; below 1 it is ahead. A run that misses is infinite."
            )
        ],
        [table],
        [_profile(middle, measure, result.directory, name) for measure in MEASURES],
    )
    yield Section(
        "Task by task: seconds, then steps to the target",
        ["Medians over seeds, ∞ where most of them missed. The best is bold."],
        [tasks_table(found, measure) for measure in MEASURES],
    )
    if both := pairs(found):
        yield Section(
            "Pair by pair, by seconds",
            [
                (
                    "Share of tasks and seeds in which the row is ahead of the column. A star: "
                    "significant at 5 % (Wilcoxon's signed-rank test of the tasks' medians, "
                    "Benjamini and Hochberg's correction for all pairs)."
                )
            ],
            [pairs_table(both)],
        )
    yield Section("Settings", tables=[settings_table(result)], is_text=True)


def standings_table(rows: Sequence[Standing], *, tasks: int) -> TextTable:
    """Returns each optimizer's places, ratios and misses."""
    return TextTable.of(
        {
            "optimizer": row.optimizer,
            **{f"first by {key}": f"{row.first[key]}/{tasks}" for key in MEASURES},
            **{f"{key} ÷ best other": number_text(row.ratio[key], 2) for key in MEASURES},
            "tasks missed": f"{row.missed_tasks}/{tasks}",
            "seeds missed": f"{row.missed}/{row.runs}",
        }
        for row in rows
    )


def tasks_table(found: pl.DataFrame, measure: str, *, ranges: bool = False) -> TextTable:
    """Returns the medians of a measure, with their ranges if asked: a row a task, its best bold."""
    by = found.group_by("task", "optimizer", maintain_order=True)
    column = pl.col(measure)
    numbers = by.agg(column.median().alias("median"), low=column.min(), high=column.max())
    rows: dict[str, dict[str, str]] = {}
    middles: dict[str, dict[str, float]] = defaultdict(dict)
    for task, optimizer, *spread in numbers.iter_rows():
        middles[task][optimizer] = spread[0]
        middle, low, high = (number_text(value, _digits(value, measure)) for value in spread)
        goal = find_task(task).metric.goal(target_of(task))
        row = rows.setdefault(task, {f"task, {measure}": task, "target": goal})
        row[optimizer] = f"{middle} ({low}–{high})" if ranges else middle
    table = TextTable.of(rows.values())
    bold = {
        (number, table.headings.index(name))
        for number, found_here in enumerate(middles.values())
        for name, value in found_here.items()
        if value == min(found_here.values()) < math.inf
    }
    return replace(table, bold=frozenset(bold))


def _digits(value: float, measure: str) -> int:
    """Digits after the point."""
    if measure == "steps":
        return 0
    return 1 if value >= 10 else 2


def pairs_table(both: Sequence[Pair]) -> TextTable:
    """Returns the share of races that a row's optimizer wins against a column's."""
    names = list(dict.fromkeys([both[0].one, *(pair.other for pair in both)]))
    cells = {}
    for pair in both:
        star = "*" if pair.chance < SIGNIFICANT else ""
        cells[pair.one, pair.other] = f"{100 * pair.ahead:.0f} %{star}"
        cells[pair.other, pair.one] = f"{100 * (1 - pair.ahead):.0f} %{star}"
    return TextTable.of(
        {"ahead of": row, **{name: cells.get((row, name), "–") for name in names}} for row in names
    )


def settings_table(result: LeagueResult) -> TextTable:
    """Returns what each optimizer was built from on all tasks, and the factor of its rates."""
    configs = {run.config.optimizer: run.config for run in result.runs}
    return TextTable.of(
        {
            "optimizer": name,
            "factor": f"{factor:g}",
            "settings": written(configs[name].settings),
        }
        for name, factor in result.factors.items()
    )


def _profile(middle: pl.DataFrame, measure: str, directory: Path, name: str) -> FigureFile:
    chosen = middle.select("optimizer", workload="task", seconds=pl.col(measure))
    draw = partial(
        draw_profile,
        times=slowdowns(chosen),
        workloads=middle["task"].n_unique(),
        measure=measure,
    )
    return write_figure(directory, f"{name}-{measure}", f"Performance profile, {measure}", draw)
