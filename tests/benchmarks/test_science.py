"""The benchmarks of equations and fits: ratios of a table, pixels and points that are drawn."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script that stands beside its fellows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("science_problems", "science_damping"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_a_table_of_dampings_has_ratios_to_the_best_that_has_neighbours(
    script: Callable[[str], Any],
) -> None:
    damping = script("science_damping")
    found = dict(zip(damping.DAMPINGS, ([1.0], [4.0], [2.0], [3.0], [8.0], [9.0]), strict=True))
    (line,) = damping.rows("heat", found, [50])
    assert line == "| heat | 50 | 0.001 | 2.0e+00 | 2.00 | 1.50 | 4.50 |"


def test_steps_of_an_equation_repeat_by_seed(script: Callable[[str], Any]) -> None:
    damping, heat = script("science_damping"), script("science_problems").problems()["heat"]()
    first, again, other = (damping.errors(heat, 1e-3, seed, [1, 3]) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 2


def test_a_photograph_gives_all_its_pixels_or_some(script: Callable[[str], Any]) -> None:
    problem = script("science_problems").problems()["image-china"]()
    places, colours = problem.draw(problem.sizes[2], torch.Generator())
    assert (places.shape, colours.shape) == ((16384, 2), (16384, 3))
    assert [len(one) for one in problem.draw(7, torch.Generator())] == [7, 7]
    assert problem.shown(0.01) == "40.0"
    assert 0 <= float(colours.min()) < float(colours.max()) <= 1
