"""Groups of options validate themselves: argument, value, what is allowed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING

import pytest
import torch

from helpers import mlp
from torch_thor import (
    THOR,
    Base,
    Damping,
    InvalidOptionError,
    NormControl,
    Preconditioner,
    Refresh,
    Statistics,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Statistics(decay=1.0), ["decay=1.0", "[0, 1)"]),
        (lambda: Statistics(decay=-0.1), ["decay=-0.1", "[0, 1)"]),
        (lambda: Statistics(rows=0), ["rows=0", "None"]),
        (
            lambda: Statistics(weight_sharing="sum"),  # type: ignore[arg-type]
            ["weight_sharing='sum'", "'reduce'"],
        ),
        (
            lambda: Statistics(loss_reduction="none"),  # type: ignore[arg-type]
            ["loss_reduction='none'", "'positions_mean'"],
        ),
        (lambda: Refresh(tolerated_failures=-1), ["tolerated_failures=-1", ">= 0"]),
        (
            lambda: Refresh(on_nonfinite="stop"),  # type: ignore[arg-type]
            ["on_nonfinite='stop'", "'skip'", "'raise'"],
        ),
        (lambda: Refresh(inverse_dtype=torch.int32), ["inverse_dtype=torch.int32", "floating"]),
        (
            lambda: Base(rule="adam"),  # type: ignore[arg-type]
            ["rule='adam'", "'sgd'", "'adamw'"],
        ),
        (lambda: Base(lr_scale=0.0), ["lr_scale=0.0", "> 0"]),
        (lambda: Preconditioner(mlp(), norm_control="kl_clip"), ["norm_control='kl_clip'", "THOR"]),
        (lambda: Preconditioner(mlp(), power=0), ["power=0", "1/2"]),
        (lambda: Preconditioner(mlp(), split=-1), ["split=-1", "'auto', 'per_layer' or None"]),
        (
            lambda: THOR(mlp(), split="layer"),  # type: ignore[arg-type]
            ["split='layer'", "an int >= 1, 'auto', 'per_layer'"],
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(build: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^Invalid ") as caught:
        build()
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    "option",
    [Statistics(), Refresh(), Update(), Base(), Damping(), NormControl("rms")],
    ids=lambda option: type(option).__name__,
)
def test_options_are_values(option: object) -> None:
    assert option == type(option)(**vars(option))
    assert hash(option) == hash(type(option)(**vars(option)))
    first = next(iter(vars(option)))
    with pytest.raises(FrozenInstanceError):
        setattr(option, first, None)


def test_zero_is_not_above_zero_where_small_numbers_are_flushed() -> None:
    torch.set_flush_denormal(True)
    with pytest.raises(InvalidOptionError, match=r"lr_scale=0\.0"):
        Base(lr_scale=0.0)
