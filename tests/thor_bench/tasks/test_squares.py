"""A loss that is a sum of squares: its value, its terms, what is no residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thor_bench.tasks import Squares, find_task

FIRST, SECOND = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2.0, 0.0, 2.0])


def given(_model: Any, batch: Any) -> Any:
    return batch


def test_half_the_mean_squares_of_rows_are_summed_over_terms() -> None:
    loss = Squares(given)
    assert loss(None, FIRST).item() == 0.5 * 30 / 2
    assert loss(None, (FIRST, SECOND)).item() == pytest.approx(0.5 * 30 / 2 + 0.5 * 8 / 3)
    assert [len(term) for term in loss.terms(None, [FIRST, SECOND])] == [2, 3]


@pytest.mark.parametrize("told", [None, 3.0, (), torch.tensor(1.0), (FIRST, torch.ones(0))])
def test_what_is_no_residual_is_refused(told: Any) -> None:
    with pytest.raises(TypeError, match=r"residuals returned .*; it must return what should be"):
        Squares(given)(None, told)


def test_the_photographs_loss_is_its_mean_squared_error() -> None:
    task = find_task("image-fit")
    torch.manual_seed(0)
    model, places, colours = task.build(), torch.rand(10, 2), torch.rand(10, 3)
    wanted = (model(places) - colours).square().mean()
    assert task.loss_of(model, (places, colours)).item() == pytest.approx(wanted.item(), rel=1e-5)
