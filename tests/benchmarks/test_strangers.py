"""Tasks that nothing was tuned for: every weight gets a gradient, and the table tells who leads."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.tasks import Metric, find_task
from thor_bench.training.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TASKS = sorted((BENCHMARKS / "strangers").glob("*.py"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("strangers")


def result(optimizer: str, curve: dict[int, float], *, failed: bool = False) -> Callable[..., Any]:
    """Returns what makes a result from the script's own class, with one run of 40 steps."""

    def make(script: Any, metric: Metric) -> Any:
        evaluations = [SimpleNamespace(step=at, test_metric=one) for at, one in curve.items()]
        end = script.RunFinished(
            step=40, seconds=1.0, best_metric=0.0, final_metric=[*curve.values()][-1]
        )
        run = SimpleNamespace(
            end=None if failed else end,
            evaluations=evaluations,
            started=SimpleNamespace(total_steps=40),
            steps=[SimpleNamespace(step=10 * n, seconds=0.1 * n * n) for n in range(1, 5)],
        )
        task = SimpleNamespace(metric=metric, label="one")
        return script.Result(task, optimizer, (run,))

    return make


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's own, of norm_first
@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_gives_every_weight_a_gradient(path: Path) -> None:
    task = find_task(str(path))
    config = plan_run(task, "adamw", seed=0, options=RunOptions(preset=DEFAULTS))
    session = Session(config, task, DataSource())
    batch = next(session.data.batches(0))
    task.loss_of(session.model, batch).backward()
    still = [name for name, one in session.model.named_parameters() if one.grad is None]
    assert not still
    assert 200 <= round(session.data.steps_per_epoch * task.epochs) <= 500


def test_a_table_has_the_place_and_the_steps_of_the_first_optimizer(script: Any) -> None:
    metric = Metric(name="loss", higher_is_better=False)
    made = (
        result("thor", {20: 0.3, 30: 0.2, 40: 0.1}),
        result("adamw", {40: 0.2}),
        result("soap", {40: 0.05}, failed=True),
    )
    results = [one(script, metric) for one in made]
    (row,) = script.table([results]).rows
    assert row == ("one", "loss", "0.1", "0.2", "∞", "1", "30 of 40")


def test_a_task_that_is_lost_has_its_place_and_no_steps(script: Any) -> None:
    metric = Metric(name="accuracy", unit="%", higher_is_better=True)
    made = (
        result("thor", {40: 90.0}), result("thor lr=0.1", {40: 99.0}), result("adamw", {40: 91.0}),
        result("soap", {40: 90.0}),
    )  # fmt: skip
    (row,) = script.table([[one(script, metric) for one in made]]).rows
    assert row[-2:] == ("2", "∞ of 40")


def test_seconds_of_a_step_are_medians_of_blocks(script: Any) -> None:
    one = result("thor", {40: 1.0})(script, Metric(name="loss", higher_is_better=False))
    assert one.seconds == pytest.approx(0.05)  # of 0.03, 0.05 and 0.07
