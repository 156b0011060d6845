"""Statistics of layers: in the records of a run, and in a figure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.image
import pytest

from thor_bench.optimizers.recipes import DEFAULTS, RunOptions, plan_run
from thor_bench.records.reading import Run, read_run
from thor_bench.report.figures import write_figure
from thor_bench.report.watch_figures import draw_statistics, runs_with_statistics
from thor_bench.tasks import find_task
from thor_bench.training.train import train

if TYPE_CHECKING:
    from pathlib import Path


def trained(optimizer: str, directory: Path) -> Run:
    task = find_task("tiny")
    options = RunOptions(epochs=3, preset=DEFAULTS, evals_per_epoch=2)
    train(plan_run(task, optimizer, seed=0, options=options), directory / optimizer)
    return read_run(directory / optimizer)


@pytest.mark.parametrize(("optimizer", "layers"), [("thor", ["0"]), ("kfac", ["0", "3"])])
def test_every_evaluation_has_those_of_every_layer(
    optimizer: str, layers: list[str], tmp_path: Path
) -> None:
    run = trained(optimizer, tmp_path)
    places = [(one.step, one.layer) for one in run.statistics]
    assert places == [(one.step, layer) for one in run.evaluations for layer in layers]
    for one in run.statistics:
        assert one.rank_a is not None
        assert 1 <= one.rank_a <= one.size[0] * 1.001
        assert one.ratio is not None
        assert one.ratio > 0
        assert one.failures == 0


def test_first_order_has_none(tmp_path: Path) -> None:
    run = trained("sgd", tmp_path)
    assert run.statistics == ()
    assert runs_with_statistics([run]) == []


@pytest.mark.parametrize("layers", [1, 4, 100])
def test_the_figure(layers: int, tmp_path: Path) -> None:
    run = trained("thor", tmp_path)
    names = [f"layer {number}" for number in range(layers)]
    few = [replace(one, layer=name) for one in run.statistics[:4] for name in names]
    unknown: dict[str, Any] = {"rank_a": None, "ratio": None, "age": None}
    assert runs_with_statistics([run]) == [run]
    for number, records in enumerate((few, [replace(one, **unknown) for one in few])):
        drawn = replace(run, statistics=tuple(records))

        def draw(theme: Any, drawn: Run = drawn) -> Any:
            return draw_statistics(theme, run=drawn)

        written = write_figure(tmp_path, f"layers-{number}", "Layers", draw)
        light = matplotlib.image.imread(written.light)
        assert light.shape[1] > 900
        assert light.std() > 0.02
