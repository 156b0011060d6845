"""One self-contained HTML page about the runs in a folder; tables and figures beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from thor_bench.compare import Comparison, read_comparison
from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.registry import lacking
from thor_bench.records.reading import Run, find_runs
from thor_bench.records.records import RunFailed, RunFinished
from thor_bench.report.differences import differences_table, settings_table
from thor_bench.report.figures import FigureFile, draw_figures
from thor_bench.report.summary import headline, reached_by_others, summarize
from thor_bench.report.tables import TextTable, comparison_csv, comparison_table, legend_of
from thor_bench.tasks import card_of

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"


@dataclass(frozen=True)
class Report:
    """What a report wrote, and what it says."""

    title: str  # what was compared
    headline: str  # the result in a sentence
    page: Path
    table: TextTable
    legend: str  # what its columns mean
    figures: tuple[FigureFile, ...]


@dataclass(frozen=True)
class Section:
    """A part of a page; tables of a paper stand after those made here."""

    title: str
    texts: Sequence[str] = ()
    tables: Sequence[TextTable] = ()
    figures: Sequence[FigureFile] = ()
    is_text: bool = False  # whether the last column is words, which wrap

    def to_markdown(self) -> str:
        """Returns the part for a Markdown file beside its figures."""
        parts = [f"## {self.title}\n", *(f"{text}\n" for text in self.texts)]
        parts += [table.to_markdown() for table in self.tables]
        parts += [f"![{figure.title}]({figure.light.name})\n" for figure in self.figures]
        return "\n".join(parts)


def _load(directory: Path) -> tuple[list[Run], Comparison | None]:
    """Reads the runs of a folder, in the order in which its comparison names their optimizers."""
    if not directory.is_dir():
        raise BenchError(f"DIR {directory} is no folder; name one that thor train or compare made")
    comparison = read_comparison(directory)
    runs = [run for run in find_runs(directory) if run.evaluations or run.end]
    if not runs:
        message = f"DIR {directory} holds no evaluated run"
        raise BenchError(f"{message}; make one with: thor train digits --out {directory}")
    workloads = sorted({run.config.workload for run in runs})
    if len(workloads) > 1:
        message = f"DIR {directory} holds runs of several workloads ({', '.join(workloads)})"
        raise BenchError(f"{message}; name the folder of one")
    if len({run.config.content for run in runs}) > 1:
        message = f"DIR {directory} holds runs of {workloads[0]} before and after it was changed"
        raise BenchError(f"{message}; make them again with --overwrite, or remove the older ones")
    if comparison is not None:
        order = {name: number for number, name in enumerate(comparison.optimizers)}
        runs.sort(key=lambda r: (order.get(r.config.optimizer, len(order)), r.config.seed))
    return runs, comparison


def run_list(runs: Sequence[Run]) -> TextTable:
    """Returns each run with how it ended and the command that repeats it."""
    rows = (
        (run.config.name, run.started.started, how_it_ended(run), run.config.command(run.directory))
        for run in runs
    )
    return TextTable(("run", "started", "state", "command"), tuple(rows))


def how_it_ended(run: Run) -> str:
    """Says how a run ended, for a table."""
    match run.end:
        case None:
            return "not finished"
        case RunFailed(reason=why):
            return f"failed: {why}"
        case RunFinished(ended=why):
            return f"ended {why}" if why else "finished"


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _spread(cell: str) -> Markup:
    """Sets the range of ``median (low–high)`` small, under the median."""
    middle, bracket, rest = cell.partition(" (")
    small = Markup("<small>{}</small>").format(rest.removesuffix(")")) if bracket else Markup()
    return escape(middle) + small


def render(template: str, **values: object) -> str:
    """Fills a page's template with what it shows."""
    environment = Environment(
        loader=PackageLoader("thor_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["inline"] = _inline
    environment.filters["spread"] = _spread
    return environment.get_template(template).render(**values)


def _target(runs: Sequence[Run], comparison: Comparison | None) -> tuple[float, str]:
    """Returns what is timed, and who set it where that was not the user."""
    task = card_of(runs[0].started)
    target = comparison.target if comparison else task.target
    if target is not None:
        return target, ""
    if not any(run.evaluations for run in runs):
        return task.metric.perfect, ""
    target, setter = reached_by_others(runs)
    told = f"Nobody set a target; {task.metric.goal(target)} is what {setter}"
    return target, f"{told} reaches with every seed, the best of the other optimizers here."


def write_report(directory: Path, *, command: str | None = None) -> Report:
    """Writes page, tables (``table.md``, ``table.csv``) and figures for the runs in a folder.

    Args:
        directory: Folder of a comparison or of one run.
        command: Command line that makes the runs; None takes the comparison's.

    Raises:
        BenchError: There are no runs, a file is broken, or the folder cannot be written.
    """
    runs, comparison = _load(directory)
    task = card_of(runs[0].started)
    target, told = _target(runs, comparison)
    summaries = summarize(runs, target)
    made = {row.optimizer for row in summaries}
    absent = lacking(
        [one for one in comparison.optimizers if one not in made] if comparison else ()
    )
    table = comparison_table(summaries, task.metric, target, absent)
    goal = f"{task.metric.name} {task.metric.goal(target)}"
    sentence, legend = headline(summaries, goal), legend_of(table)
    if command is None and comparison is not None:
        command = f"{comparison.command} --out {directory}"
    page = directory / REPORT_FILE
    try:
        (directory / FIGURES_FOLDER).mkdir(exist_ok=True)
        figures = draw_figures(runs, target, directory / FIGURES_FOLDER)
        html = render(
            "report.html.j2",
            task=task,
            goal=goal,
            headline=sentence,
            target_told=told,
            table=table,
            legend=legend,
            figures=figures,
            differences=differences_table(runs),
            settings=settings_table(runs),
            runs=run_list(runs),
            command=command,
            machines=sorted({str(run.started.machine) for run in runs}),
            parameters=runs[0].started.parameters,
        )
        page.write_text(html, encoding="utf-8")
        table.write(directory, "table", numbers=comparison_csv(summaries, target))
    except OSError as error:
        message = f"DIR {directory} cannot be written ({reason(error)})"
        raise BenchError(f"{message}; copy the runs to a folder of yours") from error
    return Report(f"{task.name}: test {goal}", sentence, page, table, legend, tuple(figures))
