"""Single steps: they find what is better, take a tenth of a run, and leave nothing behind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError
from thor_bench.find import figure, finder
from thor_bench.find.finder import Found, Trial, find_settings
from thor_bench.find.taken_back import taken_back
from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.tasks import find_task
from thor_bench.training.session import Session

if TYPE_CHECKING:
    from pathlib import Path

LOSSES = (1.5, 0.9, 0.5, 1.1)
RATES = (0.01, 0.02, 0.04, 0.08)
USUAL = 0.02


def session(optimizer: str = "thor", epochs: float = 30, **options: Any) -> Session:
    task = find_task("tiny")
    chosen = RunOptions(epochs=epochs, preset=DEFAULTS, **options)
    return Session(plan_run(task, optimizer, seed=0, options=chosen), task, DataSource())


def trained(one: Session, first: int, last: int) -> None:
    for epoch in range(first, last):
        for batch in one.data.batches(epoch):
            one.update(one.loss(batch))


def found(losses: tuple[float, ...] = LOSSES) -> Found:
    rates = tuple(Trial(rate, loss) for rate, loss in zip(RATES, losses, strict=True))
    return Found("tiny", USUAL, USUAL, rates, 2.3, 8, 800, 3.0, lowest_on_way=2.2, noise=0.06)


def state_of(one: Session) -> Any:
    """All but which layers are output layers, which stays known."""
    state = copy.deepcopy(one.rule.state_dict())
    state["optimizers"][0]["curvature"].pop("outputs", None)
    return state


@pytest.mark.parametrize("before", [0, 2])
def test_steps_are_taken_back(before: int) -> None:
    """Weights, curvature, momentum, schedules, dropout's draws: the run goes on bit for bit."""
    asked, silent = session(), session()
    for one in (asked, silent):
        torch.manual_seed(1)
        trained(one, 0, before)
    draws = torch.get_rng_state()
    state = state_of(asked)
    with taken_back(asked):
        trained(asked, 0, 2)
        asked.model.eval()
    assert asked.model.training
    assert torch.equal(torch.get_rng_state(), draws)
    torch.testing.assert_close(state_of(asked), state, rtol=0, atol=0, equal_nan=True)
    for one in (asked, silent):
        torch.set_rng_state(draws)
        trained(one, before, before + 2)
    for ours, theirs in zip(asked.model.parameters(), silent.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("epochs", "way"), [(30, 7), (50, 15), (200, 75)])
def test_a_tenth_of_the_steps_is_enough(epochs: float, way: int) -> None:
    one = find_settings(session(epochs=epochs))
    assert [trial.rate / one.usual for trial in one.rates] == [0.125, 0.25, 0.5, 1, 2]
    assert one.way == way
    assert one.taken == 0.1 * one.total == 0.4 * epochs
    assert one.best.loss < one.start


def test_each_step_begins_where_the_way_at_the_usual_rate_ends() -> None:
    """By hand: the same way, a step, and the loss of the four batches that follow."""
    one = find_settings(session())
    for number in (0, 3):
        silent = session()
        (optimizer,) = silent.rule.optimizers
        batches = [batch for epoch in range(3) for batch in silent.data.batches(epoch)]
        rates = [0.03 * min(1, (step + 1) / 3) for step in range(7)] + [one.rates[number].rate]
        for batch, rate in zip(batches, rates, strict=False):
            optimizer.param_groups[0]["lr"] = rate
            silent.backward(silent.loss(batch))
            optimizer.step()
        judged = [silent.loss(batch).item() for batch in batches[8:12]]
        assert one.rates[number].loss == pytest.approx(sum(judged) / 4, rel=1e-6)


def test_the_same_is_found_again() -> None:
    assert find_settings(session()) == find_settings(session())


def test_three_times_the_best_place_is_taken() -> None:
    """It may lie between two rates."""
    flat = found((0.9, 0.5, 1.1, 1.5))
    assert not flat.is_at_edge
    assert RATES[0] < flat.lowest < RATES[1]
    assert flat.rate == pytest.approx(3 * flat.lowest, rel=0.05)
    assert found((0.9, 0.5, 0.9, 1.5)).lowest == pytest.approx(RATES[1])


def test_at_most_four_times_the_usual_rate_are_taken() -> None:
    assert found((0.1, *LOSSES[1:])).rate == 3 * RATES[0]
    assert found().rate == found((*LOSSES[:3], 0.1)).rate == 4 * USUAL


@pytest.mark.parametrize(
    ("first", "lowest", "start", "learned"),
    [
        (3.0, 1.0, 1.6, True),
        (3.0, 1.0, 1.7, False),  # a third of what was gained is lost again
        (3.0, 2.9, 2.95, False),
        (-1.0, -3.0, -2.4, True),  # of a likelihood
        (-1.0, -3.0, -2.3, False),
        (3.0, math.inf, math.inf, False),
        (math.nan, 1.0, 1.0, False),
    ],
)
def test_a_way_has_to_lead_down(
    first: float, lowest: float, start: float, *, learned: bool
) -> None:
    one = replace(found(), first=first, lowest_on_way=lowest, start=start)
    assert one.has_learned == learned


def test_where_the_usual_rate_loses_the_model_a_tenth_of_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    losses = finder._Finder._losses

    def heard(self: Any, way: int, gone: float, rates: Any) -> list[float]:
        asked.append(gone)
        noise, lowest, first, start, *rest = losses(self, way, gone, rates)
        return [noise, lowest, first, start if gone < USUAL else 2 * first, *rest]

    monkeypatch.setattr(finder._Finder, "_losses", heard)
    one = find_settings(session())
    assert asked == [0.03, pytest.approx(0.003)]
    assert one.taken == 2 * 12
    assert one.rate <= 4 * 0.003
    result = CliRunner().invoke(app, ["find", "tiny", "--epochs", "30", "--out", str(tmp_path)])
    assert "at the usual rate 0.03 the loss rose, or did not fall" in result.output


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_constant_in_the_loss_changes_nothing(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = find_settings(session())
    loss = Session.loss
    monkeypatch.setattr(Session, "loss", lambda self, batch: loss(self, batch) + shift)
    moved = find_settings(session())
    assert (moved.gone, moved.ways) == (usual.gone, usual.ways) == (0.03, 1)
    assert moved.rate == pytest.approx(usual.rate, rel=0.1)


def test_the_way_on_which_the_loss_falls_holds_and_the_usual_one_where_it_falls_on_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ways(*, usual: tuple[float, float], slower: tuple[float, float]) -> Found:
        """Loss of the first batch and at the end of each way."""
        gone: list[float] = []

        def losses(_self: Any, _way: int, rate: float, rates: Any) -> list[float]:
            gone.append(rate)
            first, start = usual if len(gone) == 1 else slower
            return [0.1, min(first, start), first, start, *[start - 0.01] * (len(rates) - 1)]

        monkeypatch.setattr(finder._Finder, "_losses", losses)
        return find_settings(session())

    level = ways(usual=(3.0, 2.95), slower=(3.0, 2.99))
    assert (level.gone, level.ways, level.taken) == (0.03, 2, 24)
    assert ways(usual=(3.0, 2.95), slower=(3.0, 2.0)).gone == pytest.approx(0.003)
    assert ways(usual=(3.0, 3.2), slower=(3.0, 2.99)).gone == pytest.approx(0.003)
    assert ways(usual=(3.0, 2.0), slower=(3.0, 1.0)).ways == 1


def test_where_no_step_gains_the_usual_rate_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found((2.5, 2.4, 2.3, 2.6)).rate == USUAL
    monkeypatch.setattr(Session, "loss", lambda self, batch: self.model(batch[0]).sum() * 0.0)
    result = CliRunner().invoke(app, ["find", "tiny", "--epochs", "30", "--out", str(tmp_path)])
    assert "no step made the loss of unseen batches lower: keep 0.03" in result.output
    assert "take" not in result.output


def test_the_command_that_is_named_makes_the_run_that_was_judged(tmp_path: Path) -> None:
    words = ["find", "tiny", "--epochs", "30", "--batch-size", "8", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert "thor train tiny --preset defaults --epochs 30 --batch-size 8 --set lr=" in result.output


def test_what_diverged_is_never_taken() -> None:
    assert found((math.inf,) * 3 + (1.0,)).lowest == RATES[3]
    assert RATES[1] < found((*LOSSES[:3], math.inf)).lowest < RATES[2]


def test_a_run_that_is_too_short_is_told() -> None:
    with pytest.raises(BenchError, match=r"12 steps is too short.*120 steps"):
        find_settings(session(epochs=3))


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
def test_other_optimizers_are_told(optimizer: str) -> None:
    with pytest.raises(BenchError, match=r"no steps of a fixed length; try thor"):
        find_settings(session(optimizer))


def test_a_task_that_always_diverges_is_told() -> None:
    one = session()
    with torch.no_grad():
        next(one.model.parameters()).fill_(math.nan)
    with pytest.raises(BenchError, match=r"usual rate 0.03 and a tenth of it diverged"):
        find_settings(one)


def test_the_curve_is_a_line_and_a_figure(tmp_path: Path) -> None:
    uneven = found((*LOSSES[:3], math.inf))
    line = figure.line(uneven)
    assert len(line) == len(RATES)
    assert line[2] == "▁"
    assert line[-1] == "×"
    for one in (uneven, found((3.0,) * 4)):
        written = figure.write(one, tmp_path)
        assert written.light.stat().st_size > 1000
        assert written.dark.exists()
    rows = figure.table(uneven).rows
    assert [row[-1] for row in rows] == ["", "usual", "best", ""]
    assert rows[-1][1] == "diverged"
    assert figure.table(found((1.5, 0.1, 0.5, 1.1))).rows[1][-1] == "usual, best"


def test_the_command(tmp_path: Path) -> None:
    words = ["find", "tiny", "--epochs", "30", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "12 steps of 120 (10%)" in result.output
    assert "take THOR(model, lr=" in result.output
    assert "thor train tiny --preset defaults --epochs 30 --set lr=" in result.output
    assert (tmp_path / "find.png").exists()
    short = CliRunner().invoke(app, ["find", "tiny"])
    assert short.exit_code == 2
    assert "too short" in short.stderr


def test_the_lowest_rate_that_was_tried_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [0.1, 3.0, 10.0, 4.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    monkeypatch.setattr(finder._Finder, "_losses", lambda *_: losses)
    result = CliRunner().invoke(app, ["find", "tiny", "--epochs", "30", "--out", str(tmp_path)])
    assert "the best is the lowest rate tried" in result.output
    assert "take THOR(model, lr=0.011)" in result.output
