"""The paper's tables and figures for one workload, from runs made here."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.recipes import find_recipe
from thor_bench.optimizers.settings import from_values
from thor_bench.paper import published
from thor_bench.paper.claims import ablation_table, claims_table
from thor_bench.paper.figures import draw_effects, draw_factors, draw_schedules
from thor_bench.paper.runs import ABLATIONS, TABLE_2, Job, PaperRuns
from thor_bench.paper.split import report_split
from thor_bench.records.reading import Run
from thor_bench.report.curves import curves, draw_curve
from thor_bench.report.figures import FigureFile, write_figure
from thor_bench.report.layer_figures import draw_changes, draw_norms
from thor_bench.report.page import Section, render, run_list
from thor_bench.report.style import Theme
from thor_bench.report.summary import Summary, summarize
from thor_bench.report.tables import comparison_csv, comparison_table
from thor_bench.tasks import Task, find_task
from torch_thor import SplitMeasurement

PAGE = "paper.html"

_IMAGENET_PRESETS = ("paper-256", "paper-4096", "paper-8192")
_IMAGENET_STEPS = 5004  # in an epoch, at a batch of 256


class PaperWriter:
    """Writes everything about one workload into a folder.

    Args:
        workload: What was trained.
        plan: The runs.
        runs: Records of those that have ended, by folder; at least one.
        split: Measurement of the split.
        directory: Where the files go.

    Raises:
        BenchError: The workload has no target.
    """

    def __init__(
        self,
        workload: Task,
        plan: PaperRuns,
        runs: Mapping[Path, Run],
        split: SplitMeasurement,
        directory: Path,
    ) -> None:
        self._workload, self._directory = workload, directory
        self._plan, self._runs, self._split = plan, runs, split
        if workload.target is None:
            raise BenchError(f"{workload.name} has no target; give --target")
        self._target = workload.target

    def write(self) -> Path:
        """Writes tables (Markdown, CSV), figures (PNG, PDF) and one HTML page, and returns that.

        Raises:
            BenchError: The folder cannot be written.
        """
        page, runs = self._directory / PAGE, self._made(self._plan.jobs)
        try:
            sections = list(self._sections())
            title = f"THOR on {self._workload.name}: the paper's tables and figures"
            told = self._workload.description, self._workload.input_summary
            html = render(
                "sections.html.j2",
                title=title,
                what=" · ".join((*told, f"{runs[0].started.parameters:,} parameters")),
                lead=self._lead(),
                sections=sections,
                command=f"{self._plan.command} --out {self._directory}",
                runs=run_list(runs),
                machines=sorted({str(run.started.machine) for run in runs}),
            )
            page.write_text(html, encoding="utf-8")
            text = "\n".join(section.to_markdown() for section in sections)
            whole = f"# {title}\n\n{self._lead()}\n\n{text}"
            (self._directory / "paper.md").write_text(whole, encoding="utf-8")
        except OSError as error:
            message = f"--out {self._directory} cannot be written ({reason(error)})"
            raise BenchError(f"{message}; name a folder of yours") from error
        return page

    def _made(self, jobs: Iterable[Job]) -> list[Run]:
        return [self._runs[job.folder] for job in jobs if job.folder in self._runs]

    def _compared(self, *names: str) -> list[Run]:
        """Returns the runs of some optimizers, in the order of their names."""
        jobs = self._plan.compared
        return self._made(job for name in names for job in jobs if job.label == name)

    def _summaries(self, *names: str) -> list[Summary]:
        runs = self._compared(*names)
        return summarize(runs, self._target) if runs else []

    def _figure(self, stem: str, title: str, draw: Callable[[Theme], Figure]) -> FigureFile:
        return write_figure(self._directory, stem, title, draw, pdf=True)

    def _sections(self) -> Iterator[Section]:
        yield self._table_1()
        yield from self._answers()
        yield Section(
            "Tables 4 and 5: ImageNet, as the paper reports them",
            ["Not run here: thor compare imagenet-resnet50 --preset paper-256 makes them."],
            [published.TABLE_4, published.TABLE_5],
        )
        yield self._curvature()
        yield self._schedules()
        if self._compared(*TABLE_2):
            yield self._training()

    def _table_1(self) -> Section:
        split = report_split(self._split, self._workload.name, self._directory)
        size, height = published.split_curves().crossing()
        crossing = (
            f"The paper's own rows cross at ({size:.1f}, {height:.2f}) between candidates by "
            "straight lines, where its figure says (106, 0.21); both choose 128."
        )
        drawn = self._figure("figure-4", "One layer's block, whole and split", draw_factors)
        return Section(
            "Table 1, Figures 4 and 5: the split",
            [split.conclusion, crossing],
            [split.table, split.layers, published.TABLE_1],
            [split.figure, drawn],
        )

    def _answers(self) -> Iterator[Section]:
        """Yields the tables that compare optimizers, as far as there are runs of them."""
        target = self._target
        if rows := self._summaries(*TABLE_2):
            table = comparison_table(rows, self._workload.metric, target)
            table.write(self._directory, "table-2", numbers=comparison_csv(rows, target))
            yield Section("Table 2: time to target", tables=[table, published.TABLE_2])
        if self._compared("paper-kfac"):
            table = ablation_table(self._summaries("paper-kfac", *ABLATIONS))
            table.write(self._directory, "ablation")
            yield Section("Ablation: each idea against K-FAC", tables=[table, published.ABLATION])
        rows = self._summaries(*TABLE_2, *ABLATIONS)
        table = claims_table({row.optimizer: row for row in rows})
        if table.rows:
            table.write(self._directory, "claims")
            yield Section("The paper's claims, answered here", tables=[table])

    def _curvature(self) -> Section:
        quiet, rule, stop = (
            next(iter(self._compared(name)), None)
            for name in ("paper-thor-nt", "paper-thor", "paper-thor-stop")
        )
        drawings = (
            ("figure-1", "Frobenius norm per layer", draw_norms, quiet),
            ("figure-2", "Δ per layer", draw_changes, rule),
            ("figure-3", "Δ per layer, with freezing", draw_changes, stop),
        )
        figures = [
            self._figure(stem, title, partial(draw, run=run))
            for stem, title, draw, run in drawings
            if run is not None and any(record.change for record in run.decisions)
        ]
        made = "; ".join(_decisions(run) for run in (rule, stop) if run is not None)
        texts = [f"Decisions of the trace rule, all layers: {made}."] if made else []
        return Section("Figures 1, 2 and 3: how the curvature changes", texts, figures=figures)

    def _schedules(self) -> Section:
        job = next(job for job in self._plan.compared if job.label == "paper-thor")
        published_setups = {
            preset: find_recipe(find_task("imagenet-resnet50"), "paper-thor", preset)
            for preset in _IMAGENET_PRESETS
        }
        there = {preset: setup.settings for preset, setup in published_setups.items()}
        mine = from_values(type(there["paper-256"]), job.config.settings)
        here = partial(
            draw_schedules,
            settings={"paper-thor": mine},
            epochs=job.config.epochs,
            steps=next(iter(self._runs.values())).started.steps_per_epoch,
            title=f"Schedules on {self._workload.name}",
        )
        published_ones = partial(
            draw_schedules,
            settings=there,
            epochs=published_setups["paper-256"].epochs,
            steps=_IMAGENET_STEPS,
            title="Schedules of the paper on ImageNet (eq. 13, 14, 15)",
        )
        figures = [
            self._figure("figure-6", "Schedules here", here),
            self._figure("figure-8", "The paper's schedules", published_ones),
        ]
        effects = {
            job.label: run for job in self._plan.effects if (run := self._runs.get(job.folder))
        }
        if effects:
            draw = partial(draw_effects, runs=effects, metric=self._workload.metric)
            figures.append(self._figure("figure-9", "Effect of α_target and p", draw))
        return Section("Figures 6, 8 and 9: schedules and their effect", figures=figures)

    def _training(self) -> Section:
        figures = [
            self._figure(
                f"figure-{number}-{curve.stem}",
                curve.title,
                partial(draw_curve, curve=curve, runs=self._compared(*names)),
            )
            for number, names in ((7, TABLE_2), (10, ("sgd", "thor")))
            for curve in curves(self._workload.metric, self._target)
        ]
        return Section(
            "Figures 7 and 10: training loss and test metric",
            ["Figure 7 shows all of Table 2, Figure 10 SGD and thor's own recipe."],
            figures=figures,
        )

    def _lead(self) -> str:
        metric = self._workload.metric
        found = ", ".join(
            f"{row.optimizer} {row.seconds.median:.1f} s ({row.misses} of {row.runs} missed)"
            for row in self._summaries("sgd", "paper-kfac", "paper-thor", "thor")
        )
        goal = f"{metric.name} {metric.goal(self._target)}"
        made, asked = len(self._runs), len(self._plan.jobs)
        partly = f" {made} of {asked} runs are made so far." if made < asked else ""
        return f"To {goal}, median over seeds: {found or 'no run yet'}.{partly}"


def _decisions(run: Run) -> str:
    made = [record.decision for record in run.decisions]
    counts = (f"{made.count(kind)} {kind}" for kind in ("update", "keep", "freeze"))
    return f"{run.config.optimizer} {', '.join(counts)}"
