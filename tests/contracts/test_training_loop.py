"""Promise: everything that a training loop does with a torch optimizer works here."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn

from helpers import (
    AT_EVERY_STEP,
    a_scaler,
    assert_same_weights,
    data,
    draws,
    gradient_of,
    half_square,
    mean_half_square,
    mlp,
    train,
    weights,
)
from torch_thor import THOR, Damping, ExponentialDamping, PolynomialDecay, Preconditioner, Refresh

if TYPE_CHECKING:
    from collections.abc import Callable


def two_equal_models() -> tuple[nn.Sequential, nn.Sequential]:
    one, other = mlp(), mlp()
    other.load_state_dict(one.state_dict())
    return one, other


@pytest.mark.parametrize("interval", [1, 100])
def test_zero_grad_set_to_none_leaves_no_gradient_alive(interval: int) -> None:
    """Case 29."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", interval=interval)
    for _ in range(3):
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        gone = [weakref.ref(gradient_of(parameter)) for parameter in model.parameters()]
        memory = inputs.untyped_storage().data_ptr()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del inputs
        gc.collect()
        assert all(reference() is None for reference in gone)
        alive = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        assert memory not in [tensor.untyped_storage().data_ptr() for tensor in alive]


@pytest.mark.parametrize(
    "build",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=5),
    ],
    ids=["cosine", "step", "lambda", "one cycle", "cyclic", "linear"],
)
def test_schedulers_drive_the_rate_and_momentum(build: Callable[[Any], Any]) -> None:
    """Case 30: as if the values had been written into the groups by hand."""
    ours, theirs = two_equal_models()
    scheduled, by_hand = (
        THOR(model, norm_control="graft", lr=0.1, **AT_EVERY_STEP) for model in (ours, theirs)
    )
    scheduler = build(scheduled)
    rates = set()
    for batch in [data(8) for _ in range(8)]:
        for key in ("lr", "momentum"):
            by_hand.param_groups[0][key] = scheduled.param_groups[0][key]
        rates.add(scheduled.param_groups[0]["lr"])
        train(ours, scheduled, [batch])
        train(theirs, by_hand, [batch])
        scheduler.step()
    assert len(rates) > 1
    assert_same_weights(ours, theirs)


def test_a_plateau_scheduler_moves_the_rate() -> None:
    """Case 30."""
    optimizer = THOR(mlp(), norm_control="graft", lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_own_schedules_stand_in_the_groups() -> None:
    """Case 30, 31: the live values of lr and damping can be read and logged."""
    model = mlp()
    optimizer = THOR(
        model,
        norm_control="graft",
        lr=PolynomialDecay(0.1, end_epoch=10, power=1, steps_per_epoch=1),
        damping=Damping(ExponentialDamping(0.2, 0.5, steps_per_epoch=1), "both"),
    )
    seen = []
    for _ in range(3):
        train(model, optimizer, [data(8)])
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["damping"]))
    assert [lr for lr, _ in seen] == pytest.approx([0.1, 0.09, 0.08])
    assert [damping for _, damping in seen] == pytest.approx([0.2, 0.2 * 0.5**0.1, 0.2 * 0.5**0.2])


def test_clipping_before_the_step_scales_what_is_stepped_along() -> None:
    """Case 30: without norm control the direction is linear in the clipped gradient."""
    steps = []
    batch = data(8)
    for limit in (1e9, 1e-3):
        torch.manual_seed(1)
        model = mlp()
        optimizer = THOR(
            model, lr=1.0, momentum=0.0, weight_decay=0.0, norm_control=None, **AT_EVERY_STEP
        )
        before = weights(model)
        mean_half_square(model(batch[0]), batch[1]).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        steps.append([old - new for old, new in zip(before, weights(model), strict=True)])
    for full, clipped in zip(*steps, strict=True):
        torch.testing.assert_close(clipped, full * (1e-3 / norm), rtol=1e-3, atol=1e-6)


def test_a_closure_is_evaluated_once_and_its_loss_returned() -> None:
    """Case 30."""
    ours, theirs = two_equal_models()
    with_closure, without = (
        THOR(model, norm_control="graft", **AT_EVERY_STEP) for model in (ours, theirs)
    )
    for inputs, targets in [data(8) for _ in range(3)]:
        calls: list[Tensor] = []

        def closure(
            inputs: Tensor = inputs, targets: Tensor = targets, calls: list[Tensor] = calls
        ) -> Tensor:
            with_closure.zero_grad()
            loss = mean_half_square(ours(inputs), targets)
            loss.backward()
            calls.append(loss.detach())
            return loss

        # torch says that a closure returns a float, and documents ones that return a tensor
        returned: Any = with_closure.step(cast("Callable[[], Any]", closure))
        (before,) = train(theirs, without, [(inputs, targets)])
        assert len(calls) == 1
        assert float(returned.detach()) == before
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "damping"])
def test_values_of_a_group_are_honoured(key: str) -> None:
    """Case 31: a group with its own value equals a model that has it everywhere."""
    other = {"lr": 0.01, "weight_decay": 0.5, "momentum": 0.1, "damping": 10.0}[key]
    batches = [data(8) for _ in range(3)]
    common: dict[str, Any] = {"norm_control": None, **AT_EVERY_STEP}
    base: dict[str, Any] = {"lr": 0.001, "weight_decay": 0.05, "momentum": 0.9, "damping": 0.3}

    def first_layer(grouped: bool, **values: Any) -> list[Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 3))
        spare = nn.Sequential(nn.Linear(2, 2))
        both = nn.ModuleList([model, spare])
        if grouped:
            groups: list[dict[str, Any]] = [
                {"params": list(spare.parameters())},
                {"params": list(model.parameters()), key: other},
            ]
            optimizer = THOR(both, groups, **base, **common)
        else:
            optimizer = THOR(both, **{**base, **values}, **common)
        train(model, optimizer, batches)
        return weights(model)

    grouped = first_layer(grouped=True)
    for one, two in zip(grouped, first_layer(grouped=False, **{key: other}), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(grouped, first_layer(grouped=False), strict=True):
        assert not torch.equal(one, two), f"{key} has no effect at all"


def test_a_group_added_later_trains() -> None:
    """Case 31."""
    model = mlp()
    optimizer = THOR(model, list(model[0].parameters()), norm_control="graft", **AT_EVERY_STEP)
    before = weights(model[2])
    train(model, optimizer, [data(8)])
    assert all(torch.equal(*pair) for pair in zip(before, weights(model[2]), strict=True))
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
    train(model, optimizer, [data(8)])
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model[2]), strict=True))


class Optional(nn.Module):
    """A layer that only some steps use."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(5, 3)
        self.sometimes = nn.Linear(5, 3)
        self.used = True

    def forward(self, x: Tensor) -> Tensor:
        return self.always(x) + self.sometimes(x) if self.used else self.always(x)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("pattern", ["never", "first not", "every other"])
def test_parameters_without_gradient_in_some_steps(pattern: str, momentum: float) -> None:
    """Case 32: they rest, as with torch.optim.SGD, and the others are not disturbed."""
    model = Optional()
    optimizer = THOR(model, norm_control="graft", momentum=momentum, **AT_EVERY_STEP)
    for step in range(6):
        model.used = {"never": False, "first not": step > 0, "every other": step % 2 == 1}[pattern]
        before = weights(model.sometimes)
        train(model, optimizer, [data(8)])
        for old, new in zip(before, weights(model.sometimes), strict=True):
            assert torch.equal(old, new) != model.used
            assert new.isfinite().all()


def test_a_bias_without_gradient_does_not_move() -> None:
    """Case 32: a weight may get a gradient where its bias gets none."""
    model = nn.Linear(5, 3)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    for _ in range(2):
        optimizer.zero_grad()
        inputs, targets = data(8)
        mean_half_square(model(inputs), targets).backward()
        model.bias.grad = None
        before = weights(model)
        optimizer.step()
        assert not torch.equal(before[0], model.weight)
        assert torch.equal(before[1], model.bias)


def test_a_step_without_any_gradient_changes_nothing() -> None:
    """Case 32."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft")
    before = weights(model)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))
    train(model, optimizer, [data(8)])
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


def test_weight_averaging_copies_the_hooked_model() -> None:
    """Case 12: torch's own EMA deep-copies it."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft")
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        train(model, optimizer, [data(8)])
        average.update_parameters(model)
    inputs, _ = data(4)
    assert average(inputs).isfinite().all()


def test_the_preconditioner_in_front_of_adamw() -> None:
    """It rewrites gradients in place and leaves the rest to the other optimizer."""
    model = mlp()
    preconditioner = Preconditioner(model, factor_interval=2)
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = data(32)
    losses = []
    for _ in range(20):
        adamw.zero_grad()
        loss = mean_half_square(model(batch[0]), batch[1])
        loss.backward()
        identity = [gradient_of(parameter).data_ptr() for parameter in model.parameters()]
        preconditioner.step()
        assert identity == [gradient_of(parameter).data_ptr() for parameter in model.parameters()]
        adamw.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def scaler_run(
    scales: list[float],
    *,
    bad_step: int | None = None,
    on_nonfinite: Literal["skip", "ignore"] = "skip",
) -> tuple[nn.Module, THOR]:
    """fp16-style training with a scaler whose scale changes from step to step."""
    torch.manual_seed(2)
    model = mlp()
    optimizer = THOR(
        model,
        norm_control="graft",
        interval=1,
        refresh=Refresh(stagger=False, on_nonfinite=on_nonfinite),
    )
    scaler = a_scaler(init_scale=scales[0], growth_interval=10**6)
    generator = draws(3)
    for step, following in enumerate([*scales[1:], scales[-1]]):
        inputs = torch.randn(8, 5, generator=generator)
        targets = torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        loss = mean_half_square(model(inputs), targets)
        if step == bad_step:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(following)
    return model, optimizer


def test_a_gradient_scaler_with_a_changing_scale_changes_nothing() -> None:
    """Case 28: G is unscaled by the scale in force in that backward."""
    constant, _ = scaler_run([1.0, 1.0, 1.0, 1.0])
    changing, _ = scaler_run([1024.0, 2.0, 65536.0, 8.0])
    for one, other in zip(weights(constant), weights(changing), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("on_nonfinite", ["skip", "ignore"])
def test_a_step_that_the_scaler_skips_leaves_factors_and_counters_untouched(
    on_nonfinite: Literal["skip", "ignore"],
) -> None:
    """Case 28."""
    model, optimizer = scaler_run([4.0, 4.0, 4.0], bad_step=2, on_nonfinite=on_nonfinite)
    other, reference = scaler_run([4.0, 4.0], on_nonfinite=on_nonfinite)
    assert_same_weights(model, other)
    found, expected = optimizer.state_dict(), reference.state_dict()
    torch.testing.assert_close(found["curvature"], expected["curvature"], rtol=0, atol=0)
    batch = data(8)
    train(model, optimizer, [batch])
    train(other, reference, [batch])
    assert_same_weights(model, other)


@pytest.mark.parametrize(
    "options",
    [{}, {"damping": Damping(0.1, "both"), "norm_control": None, "lr": 0.01}],
    ids=["relative damping", "absolute damping"],
)
def test_unscaling_by_hand_and_clipping_under_a_scaler(options: dict[str, Any]) -> None:
    """Case 28, 30: scaler.unscale_, clip, scaler.step — the documented recipe."""
    found = []
    batches = [data(8) for _ in range(3)]
    for scale in (1.0, 512.0):
        torch.manual_seed(2)
        model = mlp()
        optimizer = THOR(model, **AT_EVERY_STEP, **options)
        scaler = a_scaler(init_scale=scale, growth_interval=10**6)
        optimizer.use_scaler(scaler)
        for inputs, targets in batches:
            optimizer.zero_grad()
            scaler.scale(mean_half_square(model(inputs), targets)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_accumulated_steps_equal_one_big_batch_through_the_optimizer() -> None:
    """Case 16."""
    ours, theirs = two_equal_models()
    whole, parts = (THOR(model, norm_control="graft", **AT_EVERY_STEP) for model in (ours, theirs))
    for inputs, targets in [data(8) for _ in range(3)]:
        train(ours, whole, [(inputs, targets)])
        parts.zero_grad()
        for x, y in zip(inputs.split(2), targets.split(2), strict=True):
            (half_square(theirs(x), y) / 8).backward()
        parts.step()
    for one, other in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_deepcopy_of_the_whole_training_state_goes_on_alike() -> None:
    """Population-based training copies model and state_dict."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    twin = copy.deepcopy(model)
    second = THOR(twin, norm_control="graft", **AT_EVERY_STEP)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    batch = data(8)
    train(model, optimizer, [batch])
    train(twin, second, [batch])
    assert_same_weights(model, twin)
