"""One loop in its usual order and in an odd one, which must count the same."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from helpers import AT_EVERY_STEP, mlp
from torch_thor import KFAC, THOR, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable


def exact(model: nn.Module, **statistics: Any) -> KFAC:
    """Its factors are those of the last step alone, and the weights stay."""
    taken = Statistics(decay=0.0, rows=None, **statistics)
    return KFAC(model, lr=0.0, factor_interval=1, inverse_interval=1, statistics=taken)


def at_every_step(model: nn.Module) -> THOR:
    """THOR, which refreshes everything in each step."""
    return THOR(model, norm_control="graft", **AT_EVERY_STEP)


def norms_both_ways(
    loop: Callable[[Any, Any, bool], None],
    model_of: Callable[[], nn.Module] = mlp,
    optimizer_of: Callable[[nn.Module], KFAC | THOR] = exact,
) -> list[dict[str, float]]:
    """The norms of the factors after ``loop(model, optimizer, odd)``, plain and odd."""
    found = []
    for odd in (False, True):
        torch.manual_seed(1)
        model = model_of()
        optimizer = optimizer_of(model)
        loop(model, optimizer, odd)
        found.append(optimizer.factor_norms())
    assert all(found), "no layer has factors: nothing would be compared"
    return found


def _fail(_: Tensor) -> None:
    raise RuntimeError("stop")


def fail_between_layers(model: nn.Sequential, inputs: Tensor, scale: float = 1.0) -> None:
    """A backward that passes the last layer and fails behind it."""
    hidden = model[1](model[0](inputs))
    hidden.register_hook(_fail)
    with pytest.raises(RuntimeError, match="stop"):
        (scale * model[2](hidden)).sum().backward()


def tensors_alive() -> int:
    """The tensors that somebody holds, here or in torch."""
    gc.collect()
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())
