"""The league: one setting for all tasks, targets set before, places and pairs in numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Never

import polars as pl
import pytest
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError, RunInterruptedError
from thor_bench.league import targets
from thor_bench.league.page import lead, tasks_table
from thor_bench.league.plan import SEARCH_SEED, League, factors, target_of
from thor_bench.league.running import LeagueRunner
from thor_bench.league.standings import pairs, standings
from thor_bench.records.config import DataSource
from thor_bench.records.reading import find_runs
from thor_bench.tasks import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thor_bench.records.config import RunConfig
    from thor_bench.tasks import Task
    from thor_bench.training.observers import Observer


@pytest.fixture(autouse=True)
def two_tasks(tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers ``other``, which is ``tiny`` with a harder target."""
    other = replace(tiny, name="other", target=100.0, epochs=1)
    monkeypatch.setitem(WORKLOADS, "other", other)


def asked(**changes: Any) -> League:
    return replace(League(tasks=("tiny", "other"), optimizers=("sgd", "adamw"), seeds=2), **changes)


def runner(league: League, folder: Path, told: list[str]) -> LeagueRunner:
    def observe(_config: RunConfig, _folder: Path, title: str) -> Sequence[Observer]:
        told.append(title)
        return []

    return LeagueRunner(league, folder, source=DataSource(), observe=observe, tell=told.append)


def test_every_task_has_the_same_setting_and_schedule_but_its_own_budget() -> None:
    one, other = (asked().config(task, "muon", seed=3, factor=2.0) for task in ("tiny", "text-gpt"))
    assert one.settings == other.settings
    assert (one.settings["lr"], one.settings["rest_lr"]) == (0.04, 6e-3)
    assert (one.settings["warmup"], one.settings["schedule"]) == (0.05, "triangle")
    assert (one.epochs, other.epochs, one.seed) == (3, 6, 3)
    assert one.evals_per_epoch * one.epochs == 21
    untuned = asked().config("tiny", "adamw", seed=0, factor=1.0).settings
    assert (untuned["lr"], untuned["beta2"]) == (0.001, 0.999)
    free = asked().config("tiny", "schedule-free", seed=0, factor=1.0).settings
    assert free["schedule"] == "constant"
    assert factors(5) == [1, 2, 0.5, 4, 0.25]


def test_the_command_writes_one_page_and_repeats_nothing(tmp_path: Path) -> None:
    words = ["league", "--tasks", "tiny,other", "--optimizers", "sgd,adamw", "--seeds", "2"]
    words += ["--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "league.html").read_text(encoding="utf-8")
    for heading in ("League of 2 optimizers on 2 tasks", "Standings", "Pair by pair", "Settings"):
        assert heading in page
    assert page.count("<picture>") == 2
    assert (
        f"thor league --tasks tiny,other --optimizers sgd,adamw --seeds 2 --out {tmp_path}" in page
    )
    found = pl.read_csv(tmp_path / "league.csv")
    assert found.select("task", "optimizer", "seed").n_unique() == len(found) == 8
    tasks = (tmp_path / "league-tasks.md").read_text(encoding="utf-8")
    assert [tasks.count(f"| {name} | ") for name in ("tiny", "other")] == [2, 2]
    before = {run.directory: run.started.started for run in find_runs(tmp_path)}
    assert len(before) == 8
    told: list[str] = []
    runner(asked(), tmp_path, told).run()
    assert told == []
    assert {run.directory: run.started.started for run in find_runs(tmp_path)} == before


def test_the_best_of_a_task_is_bold_all_where_they_are_level_none_where_all_missed() -> None:
    places = [("digits", "sgd", 5.0), ("digits", "thor", 3.0), ("tabular", "thor", 4.0)]
    places += [("tabular", "sgd", 4.0), ("vae", "sgd", math.inf), ("vae", "thor", math.inf)]
    found = pl.DataFrame(places, schema=["task", "optimizer", "steps"], orient="row")
    table = tasks_table(found, "steps")
    assert {(table.rows[row][0], table.headings[n]) for row, n in table.bold} == {
        ("digits", "thor"), ("tabular", "thor"), ("tabular", "sgd"),
    }  # fmt: skip


def test_a_stopped_league_says_how_to_go_on_and_tells_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    again = f"go on with: {asked().command} --out {tmp_path}"
    with monkeypatch.context() as patched:
        patched.setattr("thor_bench.compare.train", _stops)
        with pytest.raises(RunInterruptedError, match=again):
            runner(asked(), tmp_path, told).run()
    runner(asked(), tmp_path, told).run()
    assert told[1] == "[1/8] tiny sgd-seed0, defaults"
    assert told[-1].startswith("[8/8, 1 min left] other adamw-seed1")


def _stops(*_: object, **__: object) -> None:
    raise RunInterruptedError("stopped and saved")


def test_the_search_is_one_factor_for_all_tasks_and_fresh_seeds_follow(tmp_path: Path) -> None:
    told: list[str] = []
    found = runner(asked(search=3, seeds=1), tmp_path, told).run()
    runs = {str(run.directory.relative_to(tmp_path)): run.config for run in find_runs(tmp_path)}
    assert len(runs) == 2 * 2 * (3 + 1)
    assert runs[f"tiny/search-2/sgd-seed{SEARCH_SEED}"].settings["lr"] == 0.2
    for name, factor in found.factors.items():
        assert factor in (1, 2, 0.5)
        usual = asked().config("tiny", name, seed=0, factor=1).settings["lr"]
        assert isinstance(usual, float)
        for task in ("tiny", "other"):
            assert runs[f"{task}/best-of-3/{name}-seed0"].settings["lr"] == usual * factor
        assert f"{name}: {factor:g} times its rate serves all tasks best" in told


def test_targets_are_what_adamw_reaches_with_every_seed(tmp_path: Path) -> None:
    told: list[str] = []
    targets = runner(asked(tasks=("tiny",)), tmp_path, told).set_targets()
    runs = find_runs(tmp_path)
    best = {run.directory: max(e.test_metric for e in run.evaluations) for run in runs}
    searched = [value for path, value in best.items() if path.name.endswith(str(SEARCH_SEED))]
    fresh = [value for path, value in best.items() if not path.name.endswith(str(SEARCH_SEED))]
    assert (len(searched), len(fresh)) == (6, 3)
    assert targets["tiny"] == WORKLOADS["tiny"].metric.easier(min(fresh))
    assert told[-1].startswith(f'    "tiny": {targets["tiny"]:g},  # at ')


def test_runs_to_another_target_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    league = asked(tasks=("tiny",), optimizers=("sgd",), seeds=1)
    runner(league, tmp_path, []).run()
    monkeypatch.setitem(targets.TARGETS, "tiny", 95.0)
    assert target_of("tiny") == 95.0
    with pytest.raises(BenchError, match="holds runs to 90, not 95; name another --out"):
        runner(league, tmp_path, []).run()


def test_missing_data_are_told_before_anything_trains(
    tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_source: DataSource) -> Never:
        raise BenchError("no files; apt install them")

    monkeypatch.setitem(WORKLOADS, "other", replace(tiny, name="other", load=missing))
    told: list[str] = []
    for make in (runner(asked(), tmp_path, told).run, runner(asked(), tmp_path, told).set_targets):
        with pytest.raises(BenchError, match="apt install them"):
            make()
    assert told == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": ()}, "--tasks is empty"),
        ({"tasks": ("tinny",)}, "--tasks 'tinny' is unknown.*did you mean 'tiny'"),
        ({"seeds": 0}, "--seeds 0 must be at least 1"),
        ({"search": 0}, "--search 0 must be at least 1"),
        ({"optimizers": ("sdg",)}, "--optimizers 'sdg' is unknown"),
    ],
)
def test_what_cannot_be_asked_for_is_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(BenchError, match=told):
        asked(**changes)


def found(times: dict[str, list[float]]) -> pl.DataFrame:
    """One seed a task; steps are ten times the seconds."""
    rows = [
        {"task": f"t{task}", "optimizer": name, "seed": 0, "seconds": x, "steps": 10 * x}
        for name, values in times.items()
        for task, x in enumerate(values)
    ]
    return pl.DataFrame(rows)


def test_places_are_against_the_best_other() -> None:
    first, second, third = standings(
        found({"a": [2.0, 9.0, math.inf], "b": [4.0, 3.0, 5.0], "c": [8.0, math.inf, math.inf]})
    )
    assert [row.optimizer for row in (first, second, third)] == ["b", "a", "c"]
    assert [row.first["seconds"] for row in (first, second, third)] == [2, 1, 0]
    assert first.ratio["seconds"] == pytest.approx(3 / 9)  # of 2, 1/3 and 0: no other arrives
    assert second.ratio["steps"] == pytest.approx(3.0)  # of 1/2, 3 and ∞
    assert [row.missed_tasks for row in (first, second, third)] == [0, 1, 2]


def test_who_runs_alone_is_first_where_it_arrives_and_has_no_ratio() -> None:
    (row,) = standings(found({"a": [2.0, math.inf, 1.0]}))
    assert (row.first["seconds"], row.first["steps"], row.missed_tasks) == (2, 2, 1)
    assert math.isnan(row.ratio["seconds"])


def test_the_first_sentence_is_of_who_is_first_by_seconds() -> None:
    """An order by steps alone would have named the other."""
    times = found({"a": [2.0], "b": [1.0]}).with_columns(steps=pl.Series([10.0, 20.0]))
    rows = standings(times)
    told = lead(rows, tasks=1, seeds=1)
    assert told.startswith("b leads by seconds: of the one task it is first on 1 by seconds and on")
    assert "One seed says little" in told
    assert "One seed" not in lead(rows, tasks=2, seeds=3)
    lost = standings(found({"a": [math.inf], "b": [math.inf]}))
    assert lead(lost, tasks=1, seeds=1).startswith("No optimizer reached a target")


def test_pairs_count_misses_and_ties_and_test_over_tasks() -> None:
    tasks = 12
    (pair,) = pairs(found({"a": [1.0] * tasks, "b": [*range(2, tasks + 1), math.inf]}))
    assert (pair.one, pair.other, pair.ahead) == ("a", "b", 1.0)
    assert pair.chance == pytest.approx(2 / 2**tasks)  # all signs alike
    (tied,) = pairs(found({"a": [math.inf, 2.0], "b": [math.inf, 2.0]}))
    assert (tied.ahead, tied.chance) == (0.5, 1.0)


def test_tasks_that_would_share_a_folder_are_told_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.py").write_text(TASK, encoding="utf-8")
    tasks = tuple(str(tmp_path / name / "my.py") for name in ("a", "b"))
    with pytest.raises(BenchError, match="would share a folder, my"):
        League(tasks=tasks, optimizers=("thor",))


TASK = """
import torch
from torch.nn import functional
from thor_bench import Task


def task():
    data = (torch.randn(64, 4), torch.randn(64, 1))
    return Task(
        model=lambda: torch.nn.Linear(4, 1),
        loss=lambda model, batch: functional.mse_loss(model(batch[0]), batch[1]),
        train=data,
        test=data,
        target=0.1,
    )
"""
