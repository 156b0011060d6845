"""``thor tune``: equal budgets, pruning that changes nothing, resumption, hand-computed numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError, RunInterruptedError
from thor_bench.optimizers.peer import Takes
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.records.records import RECORDS_FILE, RunFinished, StepRecord
from thor_bench.tasks import ACCURACY, WORKLOADS
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.tune.search import (
    Search,
    open_journal,
    plan_trials,
    search_space,
    searched,
    trial_config,
)
from thor_bench.tune.study import JOURNAL_FILE, STUDY_FILE, Study, open_study
from thor_bench.tune.study_report import read_medians, slowdowns, write_study
from thor_bench.tune.tuned import median_of, ratio_of, tuned
from thor_bench.tune.tuning import Pace, StudyRunner, Trial, ranked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thor_bench.records.config import RunConfig
    from thor_bench.records.reading import Run
    from thor_bench.records.records import Record
    from thor_bench.tasks import Task
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


def ask(workload: Task, names: Sequence[str] = ("thor", "sgd", "adamw"), **asked: Any) -> Study:
    return Study(workload=workload.name, optimizers=tuple(names), **asked)


def make(directory: Path, study: Study, clock: Clock | None = None) -> StudyResult:
    runner = StudyRunner(
        study,
        directory / study.workload,
        source=DataSource(),
        observe=clock or Clock(),
        tell=lambda _line: None,
    )
    return runner.run()


def runs_of(result: StudyResult, name: str) -> list[Trial]:
    return [one for one in result.trials if one.optimizer == name]


def seconds(run: Run, target: float) -> float:
    """When a run was at a target first."""
    times = [one.seconds for one in run.evaluations if one.test_metric >= target]
    return min(times, default=math.inf)


def by_hand(one: Trial, target: float) -> tuple[float, float, float]:
    """Misses, median time to the target, best accuracy (negated): the smaller, the better."""
    runs = (one.run, *one.repeats)
    times = [seconds(run, target) for run in runs]
    best = max((e.test_metric for run in runs for e in run.evaluations), default=-math.inf)
    return (sum(map(math.isinf, times)), float(np.median(times)), -best)


@pytest.mark.parametrize(
    "name", sorted(name for name, peer in OPTIMIZERS.items() if peer.takes is Takes.GRADIENTS)
)
def test_every_optimizer_has_as_many_dimensions_around_its_recipe(name: str) -> None:
    for workload in WORKLOADS.values():
        recipe = plan_run(workload, name, seed=0)
        space = search_space(recipe)
        assert len(space) == 5
        assert [*space][:4] == ["lr", "weight_decay", "warmup", "epochs"]
        values = searched(recipe)
        lr, epochs, own = space["lr"], space["epochs"], [*space.values()][-1]
        assert (lr.low, lr.high) == pytest.approx((values["lr"] / 4, 4 * values["lr"]))
        assert (epochs.low, epochs.high) == (recipe.epochs / 2, 2 * recipe.epochs)
        key, value = [*values.items()][-1]
        assert own.low < (1 - value if f"1 - {key}" in space else value) < own.high


def test_momentum_is_searched_by_its_distance_from_one(tiny: Task) -> None:
    recipe = plan_run(tiny, "sgd", seed=0)
    assert recipe.settings["momentum"] == 0.9
    rest = search_space(recipe)["1 - momentum"]
    assert (rest.low, rest.high) == pytest.approx((0.1 / 3, 0.3))
    trials = plan_trials(recipe, trials=9, seed=0)
    for number, one in enumerate(trials):
        one.number = number
        momentum = trial_config(recipe, one).settings["momentum"]
        assert momentum == pytest.approx(1 - one.params["1 - momentum"], abs=1e-4)
        assert isinstance(momentum, float)
        assert 0.7 <= momentum <= 1 - 0.1 / 3 + 1e-4


def test_horizons_are_whole_quarters_of_an_epoch(tiny: Task, tmp_path: Path) -> None:
    epochs = [one.epochs for one in search_of(tiny, "sgd", tmp_path, trials=9).configs]
    assert len(set(epochs)) > 3
    assert all(4 * one == round(4 * one) and 1.5 <= one <= 6 for one in epochs)


def test_all_optimizers_are_tried_at_the_same_points(tiny: Task) -> None:
    places = {}
    for name in ("thor", "sgd", "adamw"):
        recipe = plan_run(tiny, name, seed=0)
        space, trials = search_space(recipe), plan_trials(recipe, trials=6, seed=0)
        places[name] = [
            [
                math.log(one.params[key] / side.low) / math.log(side.high / side.low)
                if side.log
                else (one.params[key] - side.low) / (side.high - side.low)
                for key, side in space.items()
            ]
            for one in trials
        ]
    assert np.shape(places["thor"]) == (6, 5)
    assert np.allclose(places["thor"][1:], places["sgd"][1:])
    assert np.allclose(places["thor"][1:], places["adamw"][1:])
    assert len({tuple(row) for row in places["thor"]}) == 6


def test_the_first_trial_is_the_recipe_even_outside_of_the_space(tmp_path: Path) -> None:
    recipe = plan_run(WORKLOADS["fashion-autoencoder"], "sgd", seed=0)
    assert recipe.settings["weight_decay"] == 0.0
    search = Search(recipe, open_journal(tmp_path / "trials.log"), trials=2, seed=0)
    assert search.configs[0] == recipe
    weight_decay = search.configs[1].settings["weight_decay"]
    assert isinstance(weight_decay, float)
    assert 1e-6 <= weight_decay <= 1e-3


def test_more_trials_begin_with_the_same_ones(tiny: Task) -> None:
    recipe = plan_run(tiny, "sgd", seed=0)

    def points(count: int, seed: int) -> list[dict[str, float]]:
        return [one.params for one in plan_trials(recipe, trials=count, seed=seed)]

    assert points(6, 3)[:3] == points(3, 3)
    assert points(3, 4)[1] != points(3, 3)[1]


def search_of(workload: Task, name: str, directory: Path, *, trials: int) -> Search:
    journal = open_journal(directory / JOURNAL_FILE)
    return Search(plan_run(workload, name, seed=0), journal, trials=trials, seed=0)


def test_the_limit_is_the_time_of_the_last_finalist(tiny: Task, tmp_path: Path) -> None:
    search = search_of(tiny, "sgd", tmp_path, trials=4)
    for number, (time, limits) in enumerate(
        [
            (3.0, (math.inf, math.inf)),
            (1.0, (3.0, math.inf)),
            (math.inf, (1.0, 3.0)),
            (2.0, (1.0, 3.0)),
        ]
    ):
        assert (search.limit(1), search.limit(2)) == limits
        search.begin(number)
        search.score(number, time)
    assert (search.limit(1), search.limit(2)) == (1.0, 2.0)


def test_a_journal_that_is_cut_off_at_any_write_loses_no_trial(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write is cut in half once, as where the process is killed, and its lock stays."""
    (tmp_path / "whole").mkdir()
    whole = search_of(tiny, "sgd", tmp_path / "whole", trials=3).configs
    append, written = JournalFileBackend.append_logs, 0

    def cut_off(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        nonlocal written
        if written:
            written -= 1
            append(self, logs)
            return
        path = tmp_path / JOURNAL_FILE
        append(self, logs)
        path.write_bytes(path.read_bytes()[:-5])
        path.with_name(f"{path.name}.lock").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(JournalFileBackend, "append_logs", cut_off)
    scored: list[int] = []
    for kills in range(100):
        written = kills  # so far it comes before it is killed again
        try:
            search = search_of(tiny, "sgd", tmp_path, trials=3)
            assert search.configs == whole
            for number in range(3):
                search.begin(number)
                if number not in scored:
                    search.score(number, float(number))
                    scored.append(number)
            break
        except KeyboardInterrupt:
            continue
    assert kills > 3
    assert scored == [0, 1, 2]
    assert search.limit(3) == 2.0


def test_a_broken_journal_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).write_text("no journal\n{}\n")
    with pytest.raises(
        BenchError, match=r"trials.log cannot be read .*; begin anew with --overwrite"
    ):
        open_journal(tmp_path / JOURNAL_FILE)


def test_a_study_finds_winners_and_reports_them(tiny: Task, tmp_path: Path) -> None:
    run = RunOptions(evals_per_epoch=4)
    result = make(tmp_path, ask(tiny, trials=3, seeds=2, run=run))
    assert len(result.trials) == 9
    assert [run.config.seed for run in result.runs] == [3, 3, 3, 4, 4, 4]
    for name, winner in result.winners.items():
        ranks = [by_hand(one, result.target) for one in runs_of(result, name)]
        assert by_hand(winner, result.target) == min(ranks)
        settings = [run.config.settings for run in result.runs if run.config.optimizer == name]
        assert settings == [winner.run.config.settings] * 2
    kept = sorted(path.parent.parent.name for path in tmp_path.rglob(CHECKPOINT_FILE))
    assert kept == ["target"] * 2 + ["winners"] * 6  # and none of a trial
    report = write_study(result)
    assert report.page.exists()
    html = report.page.read_text()
    assert "thor tune tiny --optimizers thor,sgd,adamw --trials 3 --seeds 2" in html
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tiny" / "tuned.csv").read_text())))
    assert [row["optimizer"] for row in rows] == ["thor", "sgd", "adamw"]
    thor = next(row for row in tuned(result) if row.optimizer == "thor")
    assert float(rows[0]["seconds_value"]) == thor.seconds.median
    assert (rows[0]["target"], rows[0]["runs"]) == (str(result.target), "2")
    ratios = [float(row["ratio_value"]) for row in rows[1:] if row["ratio_low"] == "NaN"]
    assert ratios == [1.0]  # the best first-order optimizer, against itself
    assert len((tmp_path / "tiny" / "trials.md").read_text().splitlines()) == 2 + 9


def test_the_target_is_what_every_fresh_seed_of_the_best_first_order_run_reaches(
    tiny: Task, tmp_path: Path
) -> None:
    result = make(tmp_path, ask(tiny, trials=2, seeds=3))
    trials = [*runs_of(result, "sgd"), *runs_of(result, "adamw")]
    best = min(trials, key=lambda one: (by_hand(one, 100.0), one.number))
    runs = [
        read_run(tmp_path / "tiny" / "target" / f"{best.optimizer}-seed{seed}")
        for seed in (3, 4, 5)
    ]
    reached = [max(record.test_metric for record in run.evaluations) for run in runs]
    assert result.target == pytest.approx(math.floor(100 * min(reached)) / 100)
    assert all(run.config.settings == best.run.config.settings for run in runs)
    # they set the target and were not ended by it
    assert all(one.run.end.ended is None for one in trials if isinstance(one.run.end, RunFinished))


def test_a_falling_metric_sets_an_easier_target_upwards() -> None:
    falls = replace(ACCURACY, higher_is_better=False, digits=1)
    assert falls.worst([0.31, 0.58]) == 0.58
    assert (falls.easier(0.58), ACCURACY.easier(97.456)) == (0.6, 97.45)
    assert (falls.perfect, ACCURACY.perfect) == (0.0, 100.0)


def test_settled_trials_end_early_and_it_changes_no_winner(tiny: Task, tmp_path: Path) -> None:
    run = RunOptions(evals_per_epoch=4)
    result = make(tmp_path, ask(tiny, trials=4, seeds=1, target=80.0, run=run))
    for one in result.trials:
        assert isinstance(one.run.end, RunFinished)
        times = [record.seconds for record in one.run.evaluations]
        hits = [record.test_metric >= 80 for record in one.run.evaluations]
        assert not any(hits[:-1])  # nothing after the target
        mine = runs_of(result, one.optimizer)
        earlier = [seconds(other.run, 80.0) for other in mine if other.number < one.number]
        limit = min(earlier, default=math.inf)
        assert not any(time > limit for time in times[:-1])
        if one.run.end.ended == "slower than an earlier trial":
            assert times[-1] > limit
            assert not hits[-1]
        elif one.run.end.ended == "at the target":
            assert hits[-1]
        else:
            assert one.run.end.ended is None
            assert len(times) == 4 * one.run.config.epochs


def test_finalists_run_again_and_the_best_over_all_seeds_wins(tiny: Task, tmp_path: Path) -> None:
    run = RunOptions(evals_per_epoch=4)
    study = ask(tiny, ["thor", "sgd"], trials=4, finalists=2, seeds=1, target=80.0, run=run)
    clock = Clock()
    result = make(tmp_path, study, clock)
    for name in ("thor", "sgd"):
        mine = runs_of(result, name)
        once = sorted(mine, key=lambda one: (by_hand(replace(one, repeats=()), 80.0), one.number))
        finalists = [one for one in mine if one.repeats]
        assert {one.number for one in finalists} == {one.number for one in once[:2]}
        for one in finalists:
            assert [again.config.seed for again in one.repeats] == [1, 2]
            assert all(again.config.settings == one.run.config.settings for again in one.repeats)
        best = min(by_hand(one, 80.0) for one in finalists)
        assert by_hand(result.winners[name], 80.0) == best
    assert [run.config.seed for run in result.runs] == [3, 3]
    assert len(clock.begun) == 8 + 2 * 2 * 2 + 2
    again = Clock()
    assert make(tmp_path, study, again).winners == result.winners
    assert again.begun == []


def test_a_missed_seed_ranks_behind_any_time(tiny: Task, tmp_path: Path) -> None:
    result = make(tmp_path, ask(tiny, ["sgd"], trials=2, seeds=1, target=60.0))
    hit = next(one for one in result.trials if seconds(one.run, 60.0) < math.inf)
    never = replace(hit.run, evaluations=hit.run.evaluations[:0])
    unlucky = replace(hit, repeats=(never, hit.run))
    lost = replace(hit, run=never)
    assert ranked([lost, unlucky, hit], 60.0) == [hit, unlucky, lost]


def test_where_all_miss_the_best_value_wins(tiny: Task, tmp_path: Path) -> None:
    (one,) = make(tmp_path, ask(tiny, ["sgd"], trials=1, seeds=1, target=60.0)).trials
    values = [[50.0, 40.0], [55.0, 30.0], [], [45.0, 54.0]]
    trials = [
        Trial(
            number,
            replace(
                one.run,
                evaluations=tuple(replace(one.run.evaluations[0], test_metric=v) for v in row),
            ),
        )
        for number, row in enumerate(values)
    ]
    assert [one.number for one in ranked(trials, 60.0)] == [1, 3, 0, 2]


def test_a_killed_study_goes_on_and_repeats_nothing(tiny: Task, tmp_path: Path) -> None:
    study = ask(tiny, trials=3, seeds=1, target=80.0)
    first = Clock(stop_in=5)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, study, first)
    assert len(first.begun) == 5
    second = Clock()
    result = make(tmp_path, study, second)
    assert second.begun[0] == first.begun[4]  # the one that was cut off
    assert not {*second.begun[1:]} & {*first.begun}
    assert len(second.begun) == 9 + 3 - 4
    third = Clock()
    assert make(tmp_path, study, third).winners == result.winners
    assert third.begun == []


def test_a_signal_says_how_to_go_on(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise RunInterruptedError("stopped")

    monkeypatch.setattr("thor_bench.tune.tuning.train", interrupted)
    with pytest.raises(RunInterruptedError) as told:
        make(tmp_path, ask(tiny, trials=1, seeds=1, target=80.0))
    assert f"--target 80 --evals-per-epoch 1 --out {tmp_path}" in str(told.value)
    assert "thor-000; go on with: thor tune tiny" in str(told.value)


def test_another_study_in_the_folder_is_refused(tiny: Task, tmp_path: Path) -> None:
    study = ask(tiny, ["sgd"], trials=2, run=RunOptions(batch_size=8))
    open_study(study, tmp_path)
    open_study(study, tmp_path)
    command = (
        "thor tune tiny --optimizers sgd --trials 2 --seeds 5 --evals-per-epoch 1 --batch-size 8"
    )
    with pytest.raises(BenchError, match=f"holds another study, made by {command}; begin anew"):
        open_study(replace(study, trials=3), tmp_path)


def test_a_study_can_be_made_anew(tmp_path: Path) -> None:
    words = ["tune", "tiny", "--optimizers", "sgd", "--target", "60", "--seeds", "1"]
    words += ["--out", str(tmp_path), "--trials"]
    assert CliRunner().invoke(app, [*words, "2"]).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "1"])
    assert "begin anew with --overwrite" in refused.stderr
    answer = CliRunner().invoke(app, [*words, "1", "--overwrite"])
    assert answer.exit_code == 0, answer.output
    runs = sorted(path.parent.name for path in tmp_path.rglob(RECORDS_FILE))
    assert runs == ["sgd-000", "sgd-seed3"]


def test_a_broken_study_is_told_in_one_line(tiny: Task, tmp_path: Path) -> None:
    (tmp_path / STUDY_FILE).write_text('{"workload": "tiny", "trials": []}')
    with pytest.raises(
        BenchError, match=r"study.json cannot be read .*; begin anew with --overwrite"
    ):
        open_study(ask(tiny), tmp_path)


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
    assert medians["workload"].to_list() == ["digits"] * 2
    assert medians["seconds"].is_finite().all()


def test_medians_and_intervals_are_what_a_hand_computes() -> None:
    single = median_of([2.0])
    assert single.median == 2.0
    assert math.isnan(single.low)
    # two seeds: medians 1, 2, 3 with chances 1/4, 1/2, 1/4
    pair = median_of([1.0, 3.0])
    assert (pair.median, pair.low, pair.high) == (2.0, 1.0, 3.0)
    same = median_of([4.0] * 5)
    assert (same.median, same.low, same.high) == (4.0, 4.0, 4.0)
    # one miss of five: three or more draws of it, with chance 5.8 %, make the median infinite
    missed = median_of([1.0, 2.0, 3.0, 4.0, math.inf])
    assert (missed.median, missed.high) == (3.0, math.inf)
    assert missed.low == 1.0
    ratio = ratio_of([2.0] * 3, [4.0] * 3)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert missed.text(2) == "3.00 (1.00–∞)"
    assert single.text(2) == "2.00"


def test_intervals_agree_with_all_resamples_of_three() -> None:
    values = [1.0, 5.0, 6.0]
    every = sorted(float(np.median([a, b, c])) for a in values for b in values for c in values)
    found = median_of(values)
    assert found.low == every[math.ceil(0.025 * 27) - 1]
    assert found.high == every[math.ceil(0.975 * 27) - 1]


def test_the_profile_is_what_a_hand_computes() -> None:
    medians = [
        ("digits", "thor", 1.0),
        ("digits", "sgd", 2.0),
        ("text-gpt", "thor", 6.0),
        ("text-gpt", "sgd", 4.0),
        ("text-gpt", "muon", math.inf),
        ("hopeless", "sgd", math.inf),
    ]
    found = slowdowns(pl.DataFrame(medians, ["workload", "optimizer", "seconds"], orient="row"))
    assert found["slowdown"].to_list() == [1.0, 2.0, 1.5, 1.0, math.inf, math.inf]


def test_several_studies_share_a_profile(tiny: Task, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"trials": 1, "seeds": 1, "target": 60.0}
    assert write_study(make(tmp_path, ask(tiny, ["thor", "sgd"], **asked))).profile is None
    result = make(tmp_path, ask(WORKLOADS["digits"], ["sgd", "adamw"], **asked))
    profile = write_study(result).profile
    assert profile is not None
    assert profile.light.stat().st_size > 5000
    lines = (tmp_path / "profile.md").read_text().splitlines()
    assert lines[0] == "| ÷ the best | digits | tiny |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| adamw", "| sgd", "| thor"]
    assert lines[2].endswith("| ∞ |")  # adamw was not tuned on tiny


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 60.0, 300.0])
    monkeypatch.setattr("thor_bench.tune.tuning.time.monotonic", lambda: next(now))
    pace = Pace(10)
    assert pace.start(2) == "[3/10]"
    assert pace.start(3) == "[4/10, 7 min left]"
    assert pace.start(4) == "[5/10, 15 min left]"
