"""What the options refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers import data, mean_half_square, mlp
from torch_thor import THOR, Distributed, InvalidOptionError


@pytest.mark.parametrize(
    "wrong",
    [{"wire": torch.int8}, {"wire": torch.float16}, {"timeout": 0.0}, {"inversion": "both"}],
)
def test_an_option_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidOptionError, match=f"Invalid {name}="):
        Distributed(**wrong)


def test_a_grad_scaler_needs_ddp() -> None:
    """Each rank would have a scale of its own."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", distributed=Distributed(reduce_gradients=True))
    scaler = torch.amp.GradScaler("cpu")
    inputs, targets = data()
    scaler.scale(mean_half_square(model(inputs), targets)).backward()
    with pytest.raises(InvalidOptionError, match="GradScaler"):
        scaler.step(optimizer)
