"""Tables, figures and the page: right numbers, self-contained, not empty."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from thor_bench.compare import CompareOptions, plan_comparison, run_comparison
from thor_bench.optimizers.recipes import RunOptions
from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.records.config import DataSource, RunConfig, SettingValue
from thor_bench.records.machine import Machine
from thor_bench.records.reading import Run
from thor_bench.records.records import (
    DecisionRecord,
    EpochRecord,
    EvaluationRecord,
    RunFailed,
    RunFinished,
    RunStarted,
)
from thor_bench.records.task_card import Measure
from thor_bench.report.curves import curves, draw_curve
from thor_bench.report.differences import differences_table, settings_table
from thor_bench.report.figures import draw_figures
from thor_bench.report.page import write_report
from thor_bench.report.style import DARK, LIGHT, colours
from thor_bench.report.summary import Spread, headline, summarize
from thor_bench.report.tables import TextTable, comparison_csv, comparison_table, legend_of
from thor_bench.tasks import ACCURACY, WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

    from thor_bench.report.style import Theme
    from thor_bench.tasks import Task


def made_run(
    directory: Path, optimizer: str, seed: int, accuracies: list[float], *, pace: float
) -> Run:
    """A run of the tiny workload with given test accuracies, ``pace`` seconds an epoch."""
    config = RunConfig(
        workload="tiny",
        optimizer=optimizer,
        settings={"lr": 0.1, "update_above": 0.01, "freeze_below": 0.001},
        epochs=len(accuracies),
        seed=seed,
        batch_size=16,
    )
    machine = Machine(
        cpu="c", cores=1, threads=1, gpu=None, system="s", python="3", torch="2", torch_thor="0"
    )
    points = [(n, 4 * n, pace * n) for n in range(1, len(accuracies) + 1)]
    return Run(
        directory=directory,
        started=RunStarted(
            config=config,
            machine=machine,
            steps_per_epoch=4,
            parameters=58,
            metric="accuracy",
            started="2026-01-01T00:00:00+00:00",
        ),
        steps=(),
        evaluations=tuple(
            EvaluationRecord(
                step=step, epoch=n, seconds=seconds, train_loss=1 / n, test_loss=1 / n,
                test_metric=accuracy,
            )
            for (n, step, seconds), accuracy in zip(points, accuracies, strict=True)
        ),
        epochs=tuple(
            EpochRecord(
                epoch=n, step=step, seconds=seconds, epoch_seconds=pace, train_loss=1 / n,
                peak_memory_mb=100.0 + seed,
            )
            for n, step, seconds in points
        ),
        decisions=tuple(
            DecisionRecord(
                layer=layer, step=step, decision=decision, change=change if step > 1 else None
            )
            for layer in ("0", "3")
            for step, decision, change in (
                (1, "update", 0.5), (4, "update", 0.02), (8, "keep", 0.005), (9, "freeze", 1e-4)
            )
        )
        if optimizer == "thor"
        else (),
        end=RunFinished(step=4, seconds=1.0, best_metric=1.0, final_metric=1.0),
    )  # fmt: skip


def with_settings(run: Run, settings: dict[str, SettingValue]) -> Run:
    config = replace(run.config, settings=settings)
    return replace(run, started=replace(run.started, config=config))


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        made_run(tmp_path, "thor", 0, [80, 91, 95], pace=2.0),
        made_run(tmp_path, "sgd", 0, [50, 60, 70, 90], pace=1.5),
        made_run(tmp_path, "thor", 1, [85, 89, 93], pace=2.0),
        made_run(tmp_path, "sgd", 1, [50, 60, 95, 92], pace=1.5),
        made_run(tmp_path, "thor", 2, [90, 91, 92], pace=3.0),
        made_run(tmp_path, "sgd", 2, [50, 60, 70, 80], pace=1.5),
    ]


def test_summary_is_what_a_hand_computes(runs: list[Run]) -> None:
    thor, sgd = summarize(runs, 90.0)
    assert thor.seconds == Spread(4.0, 3.0, 6.0)
    assert thor.steps == Spread(8, 4, 12)
    assert thor.epochs == Spread(2, 1, 3)
    assert thor.best_metric == Spread(93, 92, 95)
    assert thor.final_metric == Spread(93, 92, 95)
    assert thor.epoch_seconds == Spread(2.0, 2.0, 3.0)
    assert thor.peak_memory_mb == Spread(101, 100, 102)
    assert (thor.misses, thor.runs, thor.horizon) == (0, 3, 3)
    assert (sgd.misses, sgd.runs) == (1, 3)
    assert sgd.seconds == Spread(6.0, 4.5, math.inf)
    assert sgd.ratio == 1.0
    assert thor.ratio == pytest.approx(4 / 6)


def test_no_ratio_where_the_baseline_misses_or_is_missing(runs: list[Run]) -> None:
    assert [row.ratio for row in summarize(runs, 94.9)] == [None, None]
    assert [row.ratio for row in summarize(runs[::2], 90.0)] == [None]


def test_tables_agree_with_the_summary(runs: list[Run]) -> None:
    summaries = summarize(runs, 90.0)
    table = comparison_table(summaries, ACCURACY, 90.0)
    assert table.rows[0][:5] == ("thor", "4.00 (3.00–6.00)", "0.67", "8 (4–12)", "2.0 (1.0–3.0)")
    assert table.rows[1][1] == "6.00 (4.50–∞)"
    lines = table.to_markdown().splitlines()
    assert lines[0].startswith("| optimizer | s to 90 % |")
    assert len({line.count("|") for line in lines}) == 1
    rows = list(csv.DictReader(io.StringIO(comparison_csv(summaries, 90.0))))
    assert float(rows[0]["seconds_median"]) == 4.0
    assert float(rows[1]["seconds_high"]) == math.inf


def test_a_metric_that_falls_is_summed_up_and_drawn_downwards(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falls = replace(ACCURACY, name="squared error", higher_is_better=False, unit="", digits=4)
    monkeypatch.setitem(WORKLOADS, "tiny", replace(WORKLOADS["tiny"], metric=falls))
    thor, sgd = summarize(runs, 60.0)
    assert (thor.misses, sgd.misses) == (3, 0)
    assert sgd.steps == Spread(4, 4, 4)
    assert sgd.best_metric == Spread(50, 50, 50)
    table = comparison_table([thor, sgd], falls, 60.0)
    assert table.rows[1][7] == "50.0000"
    stems = [figure.light.stem for figure in draw_figures(runs, 60.0, tmp_path)]
    assert "squared-error-seconds" in stems


_BOLD = frozenset({(0, 1), (1, 2)})


@pytest.mark.parametrize(("width", "peers"), [(60, 0), (80, 0), (80, 3), (200, 0)])
def test_the_table_fits_the_terminal(runs: list[Run], width: int, peers: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    summaries = summarize(runs, 90.0)
    others = [replace(row, optimizer=f"other{n}") for row in summaries for n in range(peers)]
    table = comparison_table([*summaries, *others], ACCURACY, 90.0)
    console.print(table.to_rich("title", console))
    text = console.export_text()
    assert "…" not in text
    assert all(name in text for name in ("thor", "sgd", "4.00", "0.67"))


def test_words_stand_left_numbers_right_and_nothing_is_cut_off() -> None:
    settings = "weight_decay=0.0002554, warmup=0.2748"
    text = TextTable(("optimizer", "s", "settings"), (("thor", "∞", settings),))
    assert text.to_markdown().splitlines()[1] == "| --- | ---: | --- |"
    console = Console(width=30)
    with console.capture() as captured:
        console.print(text.to_rich("t", console))
    shown = "".join(captured.get().split())
    assert "…" not in shown
    assert "0002554," in shown


def test_bold_cells_stay_bold_in_every_form() -> None:
    text = TextTable(("task", "thor", "sgd"), (("a", "1", "2"), ("b", "4", "3")), _BOLD)
    assert text.to_markdown().splitlines()[2:] == ["| a | **1** | 2 |", "| b | 4 | **3** |"]
    turned = text.transposed()
    assert turned.to_markdown().splitlines()[2:] == ["| thor | **1** | 4 |", "| sgd | 2 | **3** |"]
    console = Console(width=30, force_terminal=True, color_system="standard")
    with console.capture() as captured:
        console.print(text.to_rich("t", console))
    assert [cell in captured.get() for cell in ("\x1b[1m1\x1b", "\x1b[1m2\x1b")] == [True, False]


def test_figures_are_drawn_for_both_themes(runs: list[Run], tmp_path: Path) -> None:
    figures = draw_figures(runs, 90.0, tmp_path)
    stems = [figure.light.stem for figure in figures]
    assert stems == [
        "loss-epoch", "loss-seconds", "accuracy-epoch", "accuracy-seconds", "change-thor",
        "decisions-thor",
    ]  # fmt: skip
    for figure in figures:
        light, dark = (matplotlib.image.imread(path) for path in (figure.light, figure.dark))
        assert light.shape[1] > 900
        assert light[0, 0, :3].mean() > 0.95
        assert dark[0, 0, :3].mean() < 0.2
        assert light.std() > 0.02


def test_figures_stand_a_run_without_evaluations(runs: list[Run], tmp_path: Path) -> None:
    failed = made_run(tmp_path, "adamw", 0, [], pace=1.0)
    assert len(draw_figures([*runs, failed], 90.0, tmp_path)) == 6


THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


@THEMES
def test_colours_differ_and_stay_with_their_optimizer(theme: Theme) -> None:
    names = ["thor", "sgd", "soap", "shampoo", "adamw"]
    palette = colours(names, theme)
    assert len(set(palette.values())) == len(names)
    assert palette["thor"] == colours(["thor"], theme)["thor"]


@THEMES
def test_there_are_colours_for_every_optimizer_at_once(theme: Theme) -> None:
    names = list(OPTIMIZERS)
    assert len(colours(names, theme)) == len(names)  # more than there are hues: some repeat
    palette = colours(names[:14], theme)
    assert len(set(palette.values())) == 14
    assert len(set(colours(["muon", "paper-thor-stop"], theme).values())) == 2  # both usually pink


def test_no_line_is_dark_on_a_dark_page() -> None:
    """WCAG asks for a contrast of 4.5; black on white has 21."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    lines = colours(list(OPTIMIZERS), DARK).values()
    paper = luminance(DARK.paper)
    assert min((luminance(line) + 0.05) / (paper + 0.05) for line in lines) >= 4.5


def test_a_run_without_a_trace_rule_shows_nothing_of_one(runs: list[Run], tmp_path: Path) -> None:
    plain = [with_settings(run, {"lr": 0.1, "update_above": None}) for run in runs]
    stems = {figure.light.stem for figure in draw_figures(plain, 90.0, tmp_path)}
    assert stems == {"loss-epoch", "loss-seconds", "accuracy-epoch", "accuracy-seconds"}


def test_what_the_trace_rule_drew_is_explained(runs: list[Run], tmp_path: Path) -> None:
    notes = [figure.note for figure in draw_figures(runs, 90.0, tmp_path)]
    assert notes[:4] == [""] * 4
    assert "ω1" in notes[4]
    assert "freeze" in notes[5]


@pytest.mark.parametrize(
    ("memory", "waits", "columns"),
    [(100.0, 0.1, set()), (150.0, 0.1, {"MiB"}), (100.0, 8.0, {"data %"})],
)
def test_columns_stand_where_they_tell_optimizers_apart(
    runs: list[Run], memory: float, waits: float, columns: set[str]
) -> None:
    thor, sgd = summarize(runs, 90.0)
    thor = replace(thor, peak_memory_mb=Spread(memory), wait_percent=Spread(waits))
    sgd = replace(sgd, peak_memory_mb=Spread(100.0), wait_percent=Spread(0.0))
    table = comparison_table([thor, sgd], ACCURACY, 90.0)
    assert {"MiB", "data %"} & set(table.headings) == columns
    legend = legend_of(table)
    assert {name for name in ("MiB", "data %") if f"{name}:" in legend} == columns
    assert "s to 90 %: seconds of training" in legend


def test_the_headline_says_how_sure_it_is(runs: list[Run]) -> None:
    thor, sgd = summarize(runs, 90.0)
    sentence = "thor is first at 90 %: 4.00 (3.00–6.00) s of training, 0.67 of SGD's time; then sgd"
    told = headline([sgd, thor], "90 %")
    assert told.startswith(sentence)
    assert "overlap: more seeds" in told
    late = replace(sgd, seconds=Spread(9.0, 8.0, 10.0))
    assert "do not overlap" in headline([thor, late], "90 %")
    assert "One seed says little" in headline(summarize(runs[:2], 90.0), "90 %")
    assert headline([thor], "90 %").startswith("thor reached 90 %: 4.00")
    assert "One seed says little" not in headline([thor], "90 %")
    assert headline(summarize(runs[:1], 90.0), "90 %").endswith("One seed says little.")
    never = replace(sgd, seconds=Spread(math.inf, math.inf, math.inf))
    never = replace(never, misses=3)
    half = replace(never, misses=2, seconds=Spread(math.inf, 1.0, math.inf))
    assert "; sgd missed it. Medians" in headline([thor, never], "90 %")
    assert "; the others missed it. Medians" in headline([thor, never, never], "90 %")
    assert "; sgd missed it with half of the seeds or more." in headline([thor, half], "90 %")
    assert headline([half, never], "9") == "No optimizer reached 9 with most of its seeds."
    assert headline(summarize(runs, 99.0), "99 %") == "No optimizer reached 99 %."


def test_settings_are_told_by_what_is_no_default(tiny: Task) -> None:
    def table(changes: list[str], preset: str | None) -> tuple[TextTable, TextTable]:
        options = CompareOptions(seeds=1, changes=changes, run=RunOptions(preset=preset))
        configs = plan_comparison(tiny, ["thor", "sgd"], options).runs
        runs = [Mock(Run, config=config) for config in configs]
        return differences_table(runs), settings_table(runs)

    short, long = table(["thor.lr=0.05", "sgd.nesterov=no"], "defaults")
    assert [row[-1] for row in short.rows] == ["lr=0.05", "nesterov=False"]
    assert all("weight_decay=" in row[-1] and "end_epoch=none" in row[-1] for row in long.rows)
    short, _ = table([], "defaults")
    assert {row[-1] for row in short.rows} == {"nothing: its defaults"}


def test_the_page_is_self_contained(tiny: Task, tmp_path: Path) -> None:
    options = CompareOptions(seeds=1, target=85.0, run=RunOptions(epochs=4, evals_per_epoch=2))
    comparison = plan_comparison(tiny, ["thor", "sgd"], options)
    run_comparison(comparison, tmp_path, source=DataSource(), observe=lambda *_: ())
    report = write_report(tmp_path)
    html = report.page.read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', html)
    assert len(sources) == 2 * len(report.figures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)
    command = "thor compare tiny --optimizers thor,sgd --seeds 1 --target 85 --epochs 4"
    assert f"{command} --evals-per-epoch 2 --out {tmp_path}" in html
    assert "torch 2" in html
    assert "exclude_head=" in html
    assert all(figure.light.stat().st_size > 5000 for figure in report.figures)


def test_the_page_escapes_what_runs_say(tiny: Task, tmp_path: Path) -> None:
    comparison = plan_comparison(tiny, ["sgd"], CompareOptions(seeds=1))
    (run,) = run_comparison(comparison, tmp_path, source=DataSource(), observe=lambda *_: ())
    failed = RunFailed(step=1, seconds=1.0, reason="<script>alert(1)</script>")
    from thor_bench.records.records import RecordWriter  # noqa: PLC0415

    path = run.directory / "records.jsonl"
    with RecordWriter(run.directory, keep_bytes=path.stat().st_size) as writer:
        writer.observe(failed)
    html = write_report(tmp_path).page.read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("accuracies", "target", "shown"),
    [
        ({"thor": [57.6], "lbfgs": [74.8]}, 74.8, ["thor", "lbfgs"]),
        ({"thor": [57.6], "adamw": [28.3]}, 28.3, ["thor", "adamw"]),
        ({"thor": [-1e9], "adamw": [50.0, 60.0]}, 60.0, ["thor (out of the picture)", "adamw"]),
    ],
)
def test_the_best_of_every_optimizer_and_the_target_are_in_view(
    accuracies: dict[str, list[float]], target: float, shown: list[str], tmp_path: Path
) -> None:
    runs = [made_run(tmp_path, name, 0, values, pace=1.0) for name, values in accuracies.items()]
    metric = Measure(name="accuracy", higher_is_better=True)
    (curve,) = [one for one in curves(metric, target) if one.stem == "accuracy-seconds"]
    axes = draw_curve(LIGHT, curve=curve, runs=runs).axes[0]
    low, high = axes.get_ylim()
    inside = [max(values) for values in accuracies.values() if max(values) > 0]
    assert all(low < value < high for value in (*inside, target))
    assert axes.get_legend_handles_labels()[1][:2] == shown


def test_a_metric_named_loss_has_a_figure_of_its_own() -> None:
    stems = [one.stem for one in curves(Measure(name="loss", higher_is_better=False), 1.0)]
    assert stems == ["loss-epoch", "loss-seconds", "test-loss-epoch", "test-loss-seconds"]


def test_a_curve_marks_where_each_run_arrives(tmp_path: Path) -> None:
    """One run arrives early and ends there, one late, one never."""
    runs = [
        made_run(tmp_path, "sgd", seed, accuracies, pace=1.0)
        for seed, accuracies in enumerate([[80.0, 91.0], [70.0, 80.0, 90.0], [60.0, 70.0, 80.0]])
    ]
    found = {curve.stem: curve for curve in curves(ACCURACY, 90.0)}
    marks = {
        stem: draw_curve(LIGHT, curve=curve, runs=runs).axes[0].collections[1:]
        for stem, curve in found.items()
    }
    [arrivals] = marks["accuracy-seconds"]
    assert np.asarray(arrivals.get_offsets()).tolist() == [[2.0, 91.0], [3.0, 90.0]]
    assert marks["loss-seconds"] == []
