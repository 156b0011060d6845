"""Promise: steps that are skipped are counted, and never skipped in silence for ever (case 72)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from helpers import a_scaler, data, mean_half_square, mlp
from ranks import on_ranks
from torch_thor import THOR, CurvatureWarning, Distributed, NonFiniteGradientError, Refresh


def step(model: nn.Module, thor: THOR, scale: float = 1.0) -> None:
    thor.zero_grad()
    inputs, targets = data()
    (scale * mean_half_square(model(inputs), targets)).backward()
    thor.step()


def said_in(model: nn.Module, thor: THOR, scales: list[float]) -> list[list[str]]:
    """What each step warned of."""
    said = []
    for scale in scales:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(model, thor, scale)
        said.append([str(warning.message) for warning in caught])
    return said


def test_the_third_in_a_row_is_one_warning_with_step_and_parameter() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    said = said_in(model, thor, [1.0, 1.0, *[torch.nan] * 200])
    (found,) = [(number, texts) for number, texts in enumerate(said) if texts]
    number, (text,) = found
    assert number == 4
    assert "after 2 that were taken" in text
    assert "'0.weight'" in text
    assert thor.skipped_steps == 200


def test_the_warning_points_at_the_line_that_steps() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    said_in(model, thor, [torch.nan, torch.nan])
    with pytest.warns(CurvatureWarning, match="3 steps were skipped") as caught:
        step(model, thor, torch.nan)
    assert [warning.filename for warning in caught] == [__file__]


def test_the_first_bad_parameter_is_named_even_where_others_are_fine() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert isinstance(model[2].bias, nn.Parameter)
    model[2].bias.grad = torch.full_like(model[2].bias, torch.inf)
    thor.step()
    thor.step()
    with pytest.warns(CurvatureWarning, match=r"the gradient of '2\.bias' holds"):
        thor.step()


def test_now_and_then_is_no_warning_but_counts() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    said = said_in(model, thor, [torch.nan, torch.nan, 1.0, torch.inf, torch.nan, 1.0])
    assert said == [[]] * 6
    assert thor.skipped_steps == 4
    again = said_in(model, thor, [torch.nan] * 5)
    assert [len(texts) for texts in again] == [0, 0, 1, 0, 0], "a new row of them is a new warning"


def test_the_count_is_saved_and_old_states_have_none() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    said_in(model, thor, [1.0, torch.nan, torch.nan])
    state: dict[str, Any] = thor.state_dict()
    heir = THOR(mlp(), norm_control="graft", lr=0.1)
    heir.load_state_dict(state)
    assert heir.skipped_steps == 2
    del state["curvature"]["skipped_steps"]
    heir.load_state_dict(state)
    assert heir.skipped_steps == 0


def test_steps_that_a_scaler_skips_are_its_own() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1)
    scaler = a_scaler(4.0)
    for _ in range(5):
        thor.zero_grad()
        scaler.scale(model(torch.randn(4, 5)).sum() * torch.inf).backward()
        scaler.step(thor)
        scaler.update()
    assert thor.skipped_steps == 0


def test_the_error_in_its_place_names_the_parameter_too() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1, refresh=Refresh(on_nonfinite="raise"))
    step(model, thor)
    with pytest.raises(NonFiniteGradientError, match=r"At step 1 the gradient of '0\.weight'"):
        step(model, thor, torch.nan)
    assert thor.skipped_steps == 0


def skips_of_one_rank() -> tuple[int, list[list[str]]]:
    """Rank 1's loss is not finite in some steps."""
    model = mlp()
    thor = THOR(model, norm_control="graft", lr=0.1, distributed=Distributed(reduce_gradients=True))
    bad = torch.nan if torch.distributed.get_rank() == 1 else 1.0
    said = said_in(model, thor, [1.0, bad, bad, bad, 1.0])
    return thor.skipped_steps, said


def test_all_ranks_count_alike() -> None:
    for count, said in on_ranks(2, skips_of_one_rank):
        assert count == 3
        assert [len(texts) for texts in said] == [0, 0, 0, 1, 0]
