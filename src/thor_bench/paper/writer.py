"""The paper's tables and figures for one workload, from runs made here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.recipes import find_recipe
from thor_bench.optimizers.settings import from_values
from thor_bench.paper import published
from thor_bench.paper.claims import ablation_table, claims_table
from thor_bench.paper.paper_figures import draw_effects, draw_factors, draw_schedules
from thor_bench.paper.paper_runs import ABLATIONS, TABLE_2, PaperRuns
from thor_bench.paper.splitting import report_split
from thor_bench.records.reading import Run
from thor_bench.report.curves import curves, draw_curve
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.layer_figures import draw_changes, draw_norms
from thor_bench.report.page import render, run_list
from thor_bench.report.style import Theme
from thor_bench.report.summary import summarize
from thor_bench.report.tables import TextTable, comparison_csv, comparison_table
from thor_bench.tasks import Workload, find_workload
from torch_thor import SplitMeasurement

PAGE = "paper.html"

_IMAGENET_STEPS = {"paper-256": 5004, "paper-4096": 312, "paper-8192": 156}


_CROSSING = (
    "The paper's own rows cross at (104.5, 0.21) between candidates by straight lines, where its "
    "figure says (106, 0.21); both choose 128."
)


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        texts: Paragraphs.
        tables: Tables, the paper's own after those made here.
        figures: Figures.
    """

    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[TextTable, ...] = ()
    figures: tuple[FigureFile, ...] = ()


class PaperWriter:
    """Writes everything about one workload into a folder.

    Args:
        workload: What was trained.
        plan: The runs.
        runs: Records of those that have ended, by folder; at least one.
        split: Measurement of the split.
        directory: Where the files go.
    """

    def __init__(
        self,
        workload: Workload,
        plan: PaperRuns,
        runs: Mapping[Path, Run],
        split: SplitMeasurement,
        directory: Path,
    ) -> None:
        self._workload = workload
        self._plan = plan
        self._runs = runs
        self._split = split
        self._directory = directory

    def write(self) -> Path:
        """Writes tables (Markdown, CSV), figures (PNG, PDF) and one HTML page.

        Returns:
            The page.

        Raises:
            BenchError: The folder cannot be written.
        """
        page = self._directory / PAGE
        everything = [self._runs[job.folder] for job in self._plan.jobs if job.folder in self._runs]
        try:
            sections = tuple(self._sections())
            html = render(
                "paper.html.j2",
                workload=self._workload,
                parameters=everything[0].started.parameters,
                lead=self._lead(),
                sections=sections,
                command=f"{self._plan.command} --out {self._directory}",
                runs=run_list(everything),
                machines=sorted({str(run.started.machine) for run in everything}),
            )
            page.write_text(html, encoding="utf-8")
            text = "\n".join(_markdown(section) for section in sections)
            title = f"# THOR on {self._workload.name}: the paper's tables and figures\n"
            (self._directory / "paper.md").write_text(
                f"{title}\n{self._lead()}\n\n{text}", encoding="utf-8"
            )
        except OSError as error:
            message = f"--out {self._directory} cannot be written ({reason(error)})"
            raise BenchError(f"{message}; name a folder of yours") from error
        return page

    def _compared(self, names: Sequence[str]) -> list[Run]:
        jobs = [job for name in names for job in self._plan.compared if job.label == name]
        return [self._runs[job.folder] for job in jobs if job.folder in self._runs]

    def _first(self, name: str) -> Run | None:
        return next(iter(self._compared([name])), None)

    def _sections(self) -> Iterator[Section]:
        yield self._table_1()
        yield from self._answers()
        yield Section(
            "Tables 4 and 5: ImageNet, as the paper reports them",
            ("Not run here: thor compare imagenet-resnet50 --preset paper-256 makes them.",),
            (published.TABLE_4, published.TABLE_5),
        )
        yield self._curvature()
        yield self._schedules()
        if self._compared(TABLE_2):
            yield self._training()

    def _table_1(self) -> Section:
        split = report_split(self._split, self._workload.name, self._directory)
        return Section(
            "Table 1, Figures 4 and 5: the split",
            (
                split.conclusion,
                _CROSSING,
            ),
            (split.table, split.layers, published.TABLE_1),
            (
                split.figure,
                self._figure("figure-4", "One layer's block, whole and split", draw_factors),
            ),
        )

    def _answers(self) -> Iterator[Section]:
        """Yields the tables that compare optimizers, as far as there are runs of them."""
        if self._compared(TABLE_2):
            yield self._table_2()
        if self._compared(["paper-kfac"]):
            yield self._ablation()
        rows = summarize(self._compared((*TABLE_2, *ABLATIONS)), self._workload.target)
        table = claims_table({row.optimizer: row for row in rows})
        if table.rows:
            self._save_table("claims", table, table.to_csv())
            yield Section("The paper's claims, answered here", (), (table,))

    def _table_2(self) -> Section:
        rows = summarize(self._compared(TABLE_2), self._workload.target)
        table = comparison_table(rows, self._workload.metric, self._workload.target)
        self._save_table("table-2", table, comparison_csv(rows, self._workload.target))
        return Section("Table 2: time to target", (), (table, published.TABLE_2))

    def _ablation(self) -> Section:
        names = ("paper-kfac", *ABLATIONS)
        rows = summarize(self._compared(names), self._workload.target)
        table = ablation_table(rows)
        self._save_table("ablation", table, table.to_csv())
        return Section("Ablation: each idea against K-FAC", (), (table, published.ABLATION))

    def _curvature(self) -> Section:
        quiet, rule = self._first("paper-thor-nt"), self._first("paper-thor")
        stop = self._first("paper-thor-stop")
        figures = (
            ("figure-1", "Frobenius norm per layer", draw_norms, quiet),
            ("figure-2", "Δ per layer", draw_changes, rule),
            ("figure-3", "Δ per layer, with freezing", draw_changes, stop),
        )
        made = [_decisions(run) for run in (rule, stop) if run is not None]
        return Section(
            "Figures 1, 2 and 3: how the curvature changes",
            (f"Decisions of the trace rule, all layers: {'; '.join(made)}.",) if made else (),
            (),
            tuple(
                self._figure(stem, title, partial(draw, run=run))
                for stem, title, draw, run in figures
                if run is not None and _changed(run)
            ),
        )

    def _schedules(self) -> Section:
        steps = next(iter(self._runs.values())).started.steps_per_epoch
        job = next(job for job in self._plan.compared if job.label == "paper-thor")
        published_setups = {
            preset: find_recipe(find_workload("imagenet-resnet50"), "paper-thor", preset)
            for preset in _IMAGENET_STEPS
        }
        there = {preset: setup.settings for preset, setup in published_setups.items()}
        mine = from_values(type(there["paper-256"]), job.config.settings)
        here = partial(
            draw_schedules,
            settings={"paper-thor": mine},
            epochs=job.config.epochs,
            steps=steps,
            title=f"Schedules on {self._workload.name}",
        )
        published_ones = partial(
            draw_schedules,
            settings=there,
            epochs=published_setups["paper-256"].epochs,
            steps=_IMAGENET_STEPS["paper-256"],
            title="Schedules of the paper on ImageNet (eq. 13, 14, 15)",
        )
        effects = {
            job.label: self._runs[job.folder]
            for job in self._plan.effects
            if job.folder in self._runs
        }
        figures = [
            self._figure("figure-6", "Schedules here", here),
            self._figure("figure-8", "The paper's schedules", published_ones),
        ]
        if effects:
            draw = partial(draw_effects, runs=effects, metric=self._workload.metric)
            figures.append(self._figure("figure-9", "Effect of α_target and p", draw))
        return Section(
            "Figures 6, 8 and 9: schedules and their effect",
            (),
            (),
            tuple(figures),
        )

    def _training(self) -> Section:
        figures = []
        for number, names in (("7", TABLE_2), ("10", ("sgd", "thor"))):
            runs = self._compared(names)
            for curve in curves(self._workload.metric, self._workload.target):
                draw = partial(draw_curve, curve=curve, runs=runs)
                figures.append(self._figure(f"figure-{number}-{curve.stem}", curve.title, draw))
        return Section(
            "Figures 7 and 10: training loss and test metric",
            ("Figure 7 shows all of Table 2, Figure 10 SGD and thor's own recipe.",),
            (),
            tuple(figures),
        )

    def _figure(self, stem: str, title: str, draw: Callable[[Theme], Figure]) -> FigureFile:
        return write_figure(self._directory, stem, title, draw, pdf=True)

    def _save_table(self, stem: str, table: TextTable, numbers: str) -> None:
        (self._directory / f"{stem}.md").write_text(table.to_markdown(), encoding="utf-8")
        (self._directory / f"{stem}.csv").write_text(numbers, encoding="utf-8")

    def _lead(self) -> str:
        compared = self._compared(TABLE_2)
        found = summarize(compared, self._workload.target) if compared else []
        rows = {row.optimizer: row for row in found}
        goal = f"{self._workload.metric.name} {self._workload.metric.goal(self._workload.target)}"
        parts = [
            f"{name} {rows[name].seconds.median:.1f} s ({rows[name].misses} of "
            f"{rows[name].runs} missed)"
            for name in ("sgd", "paper-kfac", "paper-thor", "thor")
            if name in rows
        ]
        made, asked = len(self._runs), len(self._plan.jobs)
        partly = f" {made} of {asked} runs are made so far." if made < asked else ""
        return f"To {goal}, median over seeds: {', '.join(parts) or 'no run yet'}.{partly}"


def _changed(run: Run) -> bool:
    """Tells whether a run was long enough for a second refresh."""
    return any(record.change for record in run.decisions)


def _decisions(run: Run) -> str:
    kinds = ("update", "keep", "freeze")
    made = [record.decision for record in run.decisions]
    counts = ", ".join(f"{made.count(kind)} {kind}" for kind in kinds)
    return f"{run.config.optimizer} {counts}"


def _markdown(section: Section) -> str:
    parts = [f"## {section.title}\n", *(f"{text}\n" for text in section.texts)]
    parts += [table.to_markdown() for table in section.tables]
    parts += [f"![{figure.title}]({figure.light.name})\n" for figure in section.figures]
    return "\n".join(parts)
