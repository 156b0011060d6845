"""``thor tune``: equal budgets, pruning that changes nothing, resumption, hand-computed numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError, RunInterruptedError
from thor_bench.optimizers.recipes import RunOptions, find_recipe
from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.records.records import RunFinished, StepRecord
from thor_bench.tasks import ACCURACY, WORKLOADS
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.tune.search import Dimension, plan_trials, search_space, searched
from thor_bench.tune.study import StudyOptions, open_study, plan_study, read_study
from thor_bench.tune.study_report import read_medians, slowdowns, write_study
from thor_bench.tune.trials import Pace
from thor_bench.tune.tuned import median_of, ratio_of, tuned
from thor_bench.tune.tuning import StudyRunner

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thor_bench.records.config import RunConfig
    from thor_bench.records.records import Record
    from thor_bench.tasks import Workload
    from thor_bench.training.observers import Observer
    from thor_bench.tune.tuning import StudyResult


class Clock:
    """Counts runs and, on request, stops the study in the middle of one."""

    def __init__(self, *, stop_in: int | None = None) -> None:
        self.begun: list[str] = []
        self._stop_in = stop_in

    def __call__(self, _config: RunConfig, folder: Path, _title: str) -> Sequence[Observer]:
        self.begun.append(folder.name)
        return [self] if len(self.begun) == self._stop_in else []

    def observe(self, record: Record) -> None:
        if isinstance(record, StepRecord):
            raise KeyboardInterrupt  # as a second Ctrl-C, or the machine, would end it

    def close(self) -> None:
        pass


def make(
    directory: Path,
    workload: Workload,
    options: StudyOptions,
    names: Sequence[str] = ("thor", "sgd", "adamw"),
    clock: Clock | None = None,
) -> StudyResult:
    study = plan_study(workload, names, options)
    runner = StudyRunner(
        study,
        directory / workload.name,
        source=DataSource(),
        observe=clock or Clock(),
        tell=lambda _line: None,
    )
    return runner.run()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_as_many_dimensions_around_its_recipe(name: str) -> None:
    for workload in WORKLOADS.values():
        space = search_space(workload, name)
        keys = [dimension.key for dimension in space]
        assert len(set(keys)) == 5
        assert keys[:4] == ["lr", "weight_decay", "warmup", "epochs"]
        recipe = find_recipe(workload, name)
        lr, *_, epochs, own = space
        assert (lr.low, lr.high) == pytest.approx((recipe.settings.lr / 4, 4 * recipe.settings.lr))
        assert (epochs.low, epochs.high) == (recipe.epochs / 2, 2 * recipe.epochs)
        assert own.low < getattr(recipe.settings, own.key) < own.high


def test_dimensions_run_from_end_to_end() -> None:
    assert Dimension("warmup", 0.0, 0.4, "linear").at(0.25) == pytest.approx(0.1)
    assert Dimension("lr", 0.01, 1.0).at(0.5) == pytest.approx(0.1)
    momentum = Dimension("momentum", 0.9, 0.999, "complement")
    assert [momentum.at(share) for share in (0, 0.5, 1)] == pytest.approx([0.9, 0.99, 0.999])


def test_all_optimizers_are_tried_at_the_same_points(tiny: Workload) -> None:
    options = StudyOptions(trials=6)
    study = plan_study(tiny, ["thor", "sgd", "adamw"], options)
    places: dict[str, list[list[float]]] = {}
    for trial in study.trials:
        space = search_space(tiny, trial.config.optimizer)
        values = dict(searched(trial.config, space))
        shares = [
            math.log(values[d.key] / d.low) / math.log(d.high / d.low)
            for d in space
            if d.key in ("lr", "weight_decay")
        ]
        shares.append((values["warmup"] - space[2].low) / (space[2].high - space[2].low))
        places.setdefault(trial.config.optimizer, []).append(shares)
    assert {len(rows) for rows in places.values()} == {6}
    assert np.allclose(places["thor"][1:], places["sgd"][1:], atol=1e-3)
    assert np.allclose(places["thor"][1:], places["adamw"][1:], atol=1e-3)
    assert len({tuple(row) for row in places["thor"]}) == 6
    recipe = find_recipe(tiny, "sgd")
    assert study.trials[1].config.settings["lr"] == recipe.settings.lr  # the first is the recipe


def test_more_trials_begin_with_the_same_ones(tiny: Workload) -> None:
    few, many = (
        plan_trials(tiny, "sgd", trials=count, seed=3, options=RunOptions()) for count in (3, 6)
    )
    assert many[:3] == few
    assert plan_trials(tiny, "sgd", trials=3, seed=4, options=RunOptions())[1] != few[1]


def test_a_study_finds_winners_and_reports_them(tiny: Workload, tmp_path: Path) -> None:
    options = StudyOptions(trials=3, seeds=2, run=RunOptions(evals_per_epoch=4))
    result = make(tmp_path, tiny, options)
    assert len(result.trials) == 9
    assert [run.config.seed for run in result.runs] == [3, 3, 3, 4, 4, 4]
    for name, winner in result.winners.items():
        mine = [one for one in result.trials if one.optimizer == name]
        assert winner.rank(ACCURACY, result.target) == min(
            one.rank(ACCURACY, result.target) for one in mine
        )
        settings = [run.config.settings for run in result.runs if run.config.optimizer == name]
        assert settings == [winner.trial.config.settings] * 2
    kept = sorted(path.parent.parent.name for path in tmp_path.rglob(CHECKPOINT_FILE))
    assert kept == ["target"] * 2 + ["winners"] * 6  # and none of a trial
    report = write_study(result)
    assert report.page.exists()
    html = report.page.read_text()
    assert "thor tune tiny --optimizers thor,sgd,adamw --trials 3 --seeds 2" in html
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tiny" / "tuned.csv").read_text())))
    assert [row["optimizer"] for row in rows] == ["thor", "sgd", "adamw"]
    thor = next(row for row in tuned(result) if row.optimizer == "thor")
    assert float(rows[0]["seconds_value"]) == thor.seconds.value
    ratios = [float(row["ratio_value"]) for row in rows[1:] if row["ratio_low"] == "nan"]
    assert ratios == [1.0]  # the best first-order optimizer, against itself
    assert len((tmp_path / "tiny" / "trials.md").read_text().splitlines()) == 2 + 9


def test_the_target_is_what_every_fresh_seed_of_the_best_first_order_run_reaches(
    tiny: Workload, tmp_path: Path
) -> None:
    options = StudyOptions(trials=2, seeds=3)
    result = make(tmp_path, tiny, options, ["thor", "sgd", "adamw"])
    trials = [one for one in result.trials if one.optimizer in ("sgd", "adamw")]
    best = min(trials, key=lambda one: one.rank(ACCURACY, 100.0))
    runs = [
        read_run(tmp_path / "tiny" / "target" / f"{best.optimizer}-seed{seed}")
        for seed in (3, 4, 5)
    ]
    reached = [max(record.test_metric for record in run.evaluations) for run in runs]
    assert result.target == pytest.approx(math.floor(100 * min(reached)) / 100)
    assert all(run.config.settings == best.trial.config.settings for run in runs)
    # they set the target and were not ended by it
    assert all(one.run.end.ended is None for one in trials if isinstance(one.run.end, RunFinished))


def test_a_falling_metric_sets_an_easier_target_upwards() -> None:
    falls = replace(ACCURACY, higher_is_better=False, digits=1)
    assert falls.worst([0.31, 0.58]) == 0.58
    assert (falls.easier(0.58), ACCURACY.easier(97.456)) == (0.6, 97.45)
    assert (falls.perfect, ACCURACY.perfect) == (0.0, 100.0)


def test_settled_trials_end_early_and_it_changes_no_winner(tiny: Workload, tmp_path: Path) -> None:
    run = RunOptions(evals_per_epoch=4)
    result = make(tmp_path, tiny, StudyOptions(trials=4, seeds=1, target=80.0, run=run))
    for one in result.trials:
        assert isinstance(one.run.end, RunFinished)
        times = [record.seconds for record in one.run.evaluations]
        hits = [record.test_metric >= 80 for record in one.run.evaluations]
        assert not any(hits[:-1])  # nothing after the target
        earlier = [
            other.rank(ACCURACY, 80.0)[1]
            for other in result.trials
            if other.optimizer == one.optimizer and other.trial.number < one.trial.number
        ]
        limit = min(earlier, default=math.inf)
        assert not any(time > limit for time in times[:-1])
        if one.run.end.ended == "slower than an earlier trial":
            assert times[-1] > limit
            assert not hits[-1]
        elif one.run.end.ended == "at the target":
            assert hits[-1]
        else:
            assert one.run.end.ended is None
            assert len(times) == 4 * one.trial.config.epochs


def test_finalists_run_again_and_the_best_over_all_seeds_wins(
    tiny: Workload, tmp_path: Path
) -> None:
    run = RunOptions(evals_per_epoch=4)
    options = StudyOptions(trials=4, finalists=2, seeds=1, target=80.0, run=run)
    clock = Clock()
    result = make(tmp_path, tiny, options, ["thor", "sgd"], clock)
    for name in ("thor", "sgd"):
        mine = [one for one in result.trials if one.optimizer == name]
        once = sorted(mine, key=lambda one: replace(one, repeats=()).rank(ACCURACY, 80.0))
        finalists = [one for one in mine if one.repeats]
        assert {one.trial.number for one in finalists} == {o.trial.number for o in once[:2]}
        for one in finalists:
            assert [again.config.seed for again in one.repeats] == [1, 2]
            assert all(again.config.settings == one.run.config.settings for again in one.repeats)
        assert result.winners[name] == min(finalists, key=lambda one: one.rank(ACCURACY, 80.0))
    assert [run.config.seed for run in result.runs] == [3, 3]
    assert len(clock.begun) == 8 + 2 * 2 * 2 + 2
    again = Clock()
    assert make(tmp_path, tiny, options, ["thor", "sgd"], again).winners == result.winners
    assert again.begun == []


def test_a_missed_seed_ranks_behind_any_time(tiny: Workload, tmp_path: Path) -> None:
    options = StudyOptions(trials=2, seeds=1, target=60.0)
    result = make(tmp_path, tiny, options, ["sgd"])
    hit = next(one for one in result.trials if math.isfinite(one.rank(ACCURACY, 60.0)[1]))
    unlucky = replace(hit, repeats=(replace(hit.run, evaluations=hit.run.evaluations[:0]), hit.run))
    assert unlucky.rank(ACCURACY, 60.0) > hit.rank(ACCURACY, 60.0)
    assert unlucky.rank(ACCURACY, 60.0)[:2] == (1, hit.rank(ACCURACY, 60.0)[1])


def test_a_killed_study_goes_on_and_repeats_nothing(tiny: Workload, tmp_path: Path) -> None:
    options = StudyOptions(trials=3, seeds=1, target=80.0)
    first = Clock(stop_in=5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, tiny, options, clock=first)
    assert len(first.begun) == 5
    second = Clock()
    result = make(tmp_path, tiny, options, clock=second)
    assert second.begun[0] == first.begun[4]  # the one that was cut off
    assert not {*second.begun[1:]} & {*first.begun}
    assert len(second.begun) == 9 + 3 - 4
    third = Clock()
    assert make(tmp_path, tiny, options, clock=third).winners.keys() == result.winners.keys()
    assert third.begun == []


def test_a_signal_says_how_to_go_on(
    tiny: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise RunInterruptedError("stopped")

    monkeypatch.setattr("thor_bench.tune.tuning.train", interrupted)
    with pytest.raises(RunInterruptedError) as told:
        make(tmp_path, tiny, StudyOptions(trials=1, seeds=1, target=80.0))
    assert f"--target 80 --evals-per-epoch 1 --out {tmp_path}" in str(told.value)
    assert "thor-000; go on with: thor tune tiny" in str(told.value)


def test_another_study_in_the_folder_is_refused(tiny: Workload, tmp_path: Path) -> None:
    study = plan_study(tiny, ["sgd"], StudyOptions(trials=2))
    open_study(study, tmp_path)
    assert read_study(tmp_path) == study
    with pytest.raises(BenchError, match=r"a study with other trials.*name another --out"):
        open_study(plan_study(tiny, ["sgd"], StudyOptions(trials=3)), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizers", "thor"], "names no first-order optimizer to set the target"),
        (["--optimizers", ""], "--optimizers is empty"),
        (["--optimizers", "sgdd"], "did you mean 'sgd'?"),
        (["--trials", "0"], "--trials 0 must be at least 1"),
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--finalists", "17"], "--finalists 17 must be in 1 … 16 (--trials)"),
        (["--target", "0.9"], "did you mean --target 90?"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    answer = CliRunner().invoke(app, ["tune", "tiny", "--out", str(tmp_path), *arguments])
    assert answer.exit_code == 2
    assert told in answer.output
    assert len(answer.output.splitlines()) == 1


@pytest.mark.slow
def test_the_command_tunes_digits(tmp_path: Path) -> None:
    words = ["tune", "digits", "--optimizers", "thor,sgd", "--trials", "2", "--seeds", "2"]
    answer = CliRunner().invoke(app, [*words, "--target", "60", "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert "thor: trial " in answer.output
    assert re.search(r"\[2/8, \d+ min left\] sgd-000", answer.output)
    medians = read_medians(tmp_path)
    assert medians.keys() == {"digits"}
    assert all(math.isfinite(value) for value in medians["digits"].values())


def test_medians_and_intervals_are_what_a_hand_computes() -> None:
    single = median_of([2.0])
    assert single.value == 2.0
    assert math.isnan(single.low)
    # two seeds: medians 1, 2, 3 with chances 1/4, 1/2, 1/4
    pair = median_of([1.0, 3.0])
    assert (pair.value, pair.low, pair.high) == (2.0, 1.0, 3.0)
    same = median_of([4.0] * 5)
    assert (same.value, same.low, same.high) == (4.0, 4.0, 4.0)
    # one miss of five: three or more draws of it, with chance 5.8 %, make the median infinite
    missed = median_of([1.0, 2.0, 3.0, 4.0, math.inf])
    assert (missed.value, missed.high) == (3.0, math.inf)
    assert missed.low == 1.0
    ratio = ratio_of([2.0] * 3, [4.0] * 3)
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert str(missed) == "3.00 (1.00–∞)"
    assert str(single) == "2.00"


def test_intervals_agree_with_all_resamples_of_three() -> None:
    values = [1.0, 5.0, 6.0]
    every = sorted(float(np.median([a, b, c])) for a in values for b in values for c in values)
    found = median_of(values)
    assert found.low == every[math.ceil(0.025 * 27) - 1]
    assert found.high == every[math.ceil(0.975 * 27) - 1]


def test_the_profile_is_what_a_hand_computes() -> None:
    medians = {
        "digits": {"thor": 1.0, "sgd": 2.0},
        "text-gpt": {"thor": 6.0, "sgd": 4.0, "muon": math.inf},
    }
    assert slowdowns(medians) == {
        "thor": [1.0, 1.5],
        "sgd": [2.0, 1.0],
        "muon": [math.inf, math.inf],
    }


def test_several_studies_share_a_profile(tiny: Workload, tmp_path: Path) -> None:
    options = StudyOptions(trials=1, seeds=1, target=60.0)
    assert write_study(make(tmp_path, tiny, options, ["thor", "sgd"])).profile is None
    result = make(tmp_path, WORKLOADS["digits"], options, ["thor", "sgd"])
    profile = write_study(result).profile
    assert profile is not None
    assert profile.light.stat().st_size > 5000
    lines = (tmp_path / "profile.md").read_text().splitlines()
    assert lines[0] == "| ÷ the best | digits | tiny |"
    assert len(lines) == 4


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 60.0, 300.0])
    monkeypatch.setattr("thor_bench.tune.trials.time.monotonic", lambda: next(now))
    pace = Pace(10)
    assert pace.start(2) == "[3/10]"
    assert pace.start(3) == "[4/10, 7 min left]"
    assert pace.start(4) == "[5/10, 15 min left]"
