"""Promise: what is copied with its model goes on by itself; what can't be copied says so."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helpers import (
    AT_EVERY_STEP,
    assert_same_weights,
    data,
    gradients,
    mean_half_square,
    mlp,
    train,
    weights,
)
from torch_thor import EKFAC, KFAC, THOR, Preconditioner

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_copy_of_model_and_optimizer_goes_on_alike(kind: Any, steps: int) -> None:
    """Case 67."""
    options = AT_EVERY_STEP if kind is THOR else {}
    model = mlp()
    optimizer = kind(model, **options)
    train(model, optimizer, [data(8) for _ in range(steps)])
    twin, second = copy.deepcopy((model, optimizer))
    batches = [data(8) for _ in range(3)]
    train(model, optimizer, batches)
    train(twin, second, batches)
    assert_same_weights(model, twin)
    assert second.factor_norms() == optimizer.factor_norms()
    assert str(second.coverage()) == str(optimizer.coverage())
    before = weights(model)
    train(twin, second, [data(8)])
    assert all(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_copy_takes_over_every_refresh(steps: int) -> None:
    """torch counts writes to a copy's tensors from the start again."""
    model = mlp()
    optimizer = THOR(model, interval=1)
    train(model, optimizer, [data(8) for _ in range(steps)])
    twin, second = copy.deepcopy((model, optimizer))
    batches = [data(8) for _ in range(3)]
    for batch in batches:
        train(model, optimizer, [batch])
        train(twin, second, [batch])
        assert_same_weights(model, twin)


def test_a_scheduler_can_be_copied_along() -> None:
    """Case 67: it holds a bound method of the optimizer."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, [data(8)])
    scheduler.step()
    twin, second, follower = copy.deepcopy((model, optimizer, scheduler))
    train(twin, second, [data(8)])
    follower.step()
    assert second.param_groups[0]["lr"] == 0.025
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_an_optimizer_says_how_it_is_saved() -> None:
    """Case 67: hooks can't be pickled."""
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(THOR(mlp(), norm_control="graft"))


@pytest.mark.parametrize("wrap", ["compiled", "data parallel", "averaged"])
def test_names_are_the_models_own(wrap: str) -> None:
    """Case 67: a checkpoint made through a wrapper is one of the bare model."""
    model = mlp()
    wrappers: dict[str, Callable[[], Any]] = {
        "compiled": lambda: torch.compile(model, backend="eager"),
        "data parallel": lambda: torch.nn.DataParallel(model),
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(model),
    }
    wrapped = wrappers[wrap]()
    inner = wrapped.module if wrap == "averaged" else model
    optimizer = THOR(wrapped, norm_control="graft", **AT_EVERY_STEP)
    train(inner, optimizer, [data(8)])
    assert set(optimizer.factor_norms()) == {"0", "2"}
    assert next(entry.name for entry in optimizer.coverage()) == "0.weight"
    bare = THOR(mlp(), norm_control="graft", **AT_EVERY_STEP)
    bare.load_state_dict(optimizer.state_dict())
    assert bare.factor_norms() == optimizer.factor_norms()


def test_a_copied_preconditioner_goes_on_alike() -> None:
    """Case 67: also between refreshes, when its plan is the copied one."""
    model = mlp()
    preconditioner = Preconditioner(model, factor_interval=1000)
    batches = [data(8) for _ in range(2)]

    def gradients_after(module: Any, own: Preconditioner) -> list[torch.Tensor]:
        for inputs, targets in batches:
            module.zero_grad()
            mean_half_square(module(inputs), targets).backward()
            own.step()
        return gradients(module)

    gradients_after(model, preconditioner)
    twin, second = copy.deepcopy((model, preconditioner))
    expected = gradients_after(model, preconditioner)
    torch.testing.assert_close(gradients_after(twin, second), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
def test_a_layer_freezes_and_thaws_in_a_copy_as_in_the_original(kind: Any) -> None:
    """The others keep the calls that wait, and what thaws has curvature in that step."""
    model = mlp()
    often: dict[str, Any] = {"factor_interval": 1, "inverse_interval": 1}
    optimizer = kind(
        model, **({**AT_EVERY_STEP, "norm_control": "graft"} if kind is THOR else often)
    )
    train(model, optimizer, [data(8) for _ in range(2)])
    twin, second = copy.deepcopy((model, optimizer))
    batches = [data(8) for _ in range(6)]
    for number, batch in enumerate(batches):
        for one, own in ((model, optimizer), (twin, second)):
            one.get_submodule("0").requires_grad_(requires_grad=number >= 3)
            train(one, own, [batch])
        assert optimizer.factor_norms() == second.factor_norms()
    assert_same_weights(model, twin)
