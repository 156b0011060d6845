"""Promise: what counts, counts in odd orders too; each of these held no test before."""

from __future__ import annotations

import gc
import math
import pickle
import warnings
import weakref
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from helpers import (
    AT_EVERY_STEP,
    data,
    draws,
    gradient_of,
    gradients,
    mean_half_square,
    mlp,
    train,
    weights,
)
from orders import at_every_step, exact, fail_between_layers, norms_both_ways, tensors_alive
from torch_thor import (
    KFAC,
    THOR,
    CurvatureWarning,
    NonFiniteGradientError,
    PolynomialDecay,
    Preconditioner,
    Refresh,
    Treatment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

AT_EVERY_STEP_OF_ITS_OWN: dict[str, Any] = {"factor_interval": 1, "split": None}


def backward(model: nn.Module, batch: tuple[Tensor, Tensor], **how: bool) -> None:
    mean_half_square(model(batch[0]), batch[1]).backward(**how)


def assert_only_base_steps(model: nn.Module, loss: Callable[[], Tensor], why: str) -> None:
    """Two steps tell once why a layer has no curvature, and it steps by the base rule."""
    optimizer = at_every_step(model)

    def go() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    with pytest.warns(CurvatureWarning, match=why) as caught:
        go()
    assert len(caught) == 1
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.BASE}


def test_a_gradient_that_takes_the_place_of_one_that_is_kept_counts_alone() -> None:
    """Case 45: the other one is still alive, in a list of the user's."""
    before, batch = data(8), data(8)

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        parameters, kept = list(model.parameters()), []
        if odd:
            backward(model, before)
            kept = [parameter.grad for parameter in parameters]
        taken = torch.autograd.grad(mean_half_square(model(batch[0]), batch[1]), parameters)
        for parameter, gradient in zip(parameters, taken, strict=True):
            parameter.grad = gradient
        optimizer.step()
        assert len(kept) == (4 if odd else 0)

    plain, odd = norms_both_ways(loop)
    assert odd == plain


def test_calls_count_in_one_step_also_where_gradients_go_on_adding_up() -> None:
    """Case 45: no ``zero_grad`` at all."""
    batches = [data(8) for _ in range(2)]

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for batch in batches if odd else batches[1:]:
            backward(model, batch)
            optimizer.step()

    plain, odd = norms_both_ways(loop)
    assert odd == plain


def test_other_leaves_in_the_weights_places_count_where_their_gradients_are_put_into_grad() -> None:
    """Case 45, 46: functional_call with copies of the parameters."""
    batches = [data(8) for _ in range(2)]

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            if odd:
                named = {
                    n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()
                }
                mean_half_square(functional_call(model, named, (inputs,)), targets).backward()
                for name, parameter in model.named_parameters():
                    parameter.grad = named[name].grad
            else:
                backward(model, (inputs, targets))
            optimizer.step()

    plain, odd = norms_both_ways(loop)
    assert odd == plain


@pytest.mark.usefixtures("own_objects")
def test_rows_go_with_a_gradient_that_autograd_grad_returned() -> None:
    """Case 46: memory is free as soon as nobody holds it."""
    model = mlp()
    optimizer = KFAC(model)
    inputs, targets = data(64)
    before = tensors_alive()
    loss = mean_half_square(model(inputs), targets)
    taken = torch.autograd.grad(loss, list(model.parameters()))
    del loss
    assert tensors_alive() > before + len(taken)
    del taken
    assert tensors_alive() == before
    assert optimizer.wants_statistics


@pytest.mark.filterwarnings("ignore::torch_thor.CurvatureWarning")
def test_a_zeroed_gradient_of_a_forward_before_the_last_step_counts_nothing() -> None:
    """Case 46: the forward of the next batch runs before the step of this one."""
    model = nn.Linear(5, 3)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    optimizer.zero_grad()
    loss = mean_half_square(model(data(8)[0]), data(8)[1])
    optimizer.step()
    before = optimizer.factor_norms()
    (3 * loss).backward()
    model.zero_grad(set_to_none=False)
    optimizer.step()
    assert optimizer.factor_norms() == before


def test_gradients_of_the_input_begin_no_new_pass() -> None:
    """Kind of case 45: a penalty on them, between two forwards over the same samples."""
    batch = data(8)

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        inputs = batch[0].clone().requires_grad_()
        first = model(inputs)
        if odd:
            torch.autograd.grad(first.sum(), inputs, retain_graph=True)
        one, other = (mean_half_square(outputs, batch[1]) for outputs in (first, model(inputs)))
        (one + other).backward()
        optimizer.step()

    plain, odd = norms_both_ways(loop)
    assert odd == plain


def test_groups_that_swap_their_parameters_are_followed() -> None:
    """Case 48: as many as before in each group, and the same in all."""
    model = mlp()
    said = [
        {"params": list(model[0].parameters()), "lr": 0.0},
        {"params": list(model[2].parameters()), "lr": 0.1},
    ]
    optimizer = THOR(model, said, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8), data(8)])
    one, other = optimizer.param_groups
    one["params"], other["params"] = other["params"], one["params"]
    before = weights(model)
    train(model, optimizer, [data(8)])
    moved = [not torch.equal(*pair) for pair in zip(before, weights(model), strict=True)]
    assert moved == [True, True, False, False]


def test_a_module_that_was_replaced_is_free() -> None:
    """Case 58: what rests is of modules that the model still has."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    gone = weakref.ref(model[2])
    model[2] = nn.Linear(6, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, [data(8), data(8)])
    gc.collect()
    assert gone() is None
    assert not optimizer.engine.store.resting


def test_coverage_after_loading_is_that_of_the_state() -> None:
    """Case 50, 75: before any step."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    fresh = THOR(mlp(), norm_control="graft", **AT_EVERY_STEP)
    fresh.load_state_dict(optimizer.state_dict())
    assert {entry.treatment for entry in fresh.coverage()} == {Treatment.PRECONDITIONED}
    optimizer.reset_curvature()
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.BASE}


def test_a_layer_whose_forward_returns_no_tensor_steps_by_the_base_rule() -> None:
    """Case 51: a forward that somebody has put over the module's own."""
    model = nn.Sequential(nn.Linear(5, 3))
    plain = model[0].forward
    model[0].forward = lambda x: (plain(x), None)
    inputs, _ = data(8)
    assert_only_base_steps(model, lambda: model(inputs)[0].square().sum(), "'0'.*no tensor")


def test_a_layer_one_of_whose_calls_is_strange_has_no_statistics_of_the_others() -> None:
    """Case 51: half of a gradient's calls are no statistics of it."""
    model = nn.Sequential(nn.Linear(5, 3))
    inputs = torch.randn(8, 5)
    sparse = inputs.relu().to_sparse()
    assert_only_base_steps(model, lambda: model(inputs).sum() + model(sparse).sum(), "'0'.*layout")


def test_attention_is_heard_after_its_hooks_were_off() -> None:
    """Case 54."""
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    with optimizer.without_hooks():
        pass
    x = torch.randn(3, 5, 4)
    model(x, x, x)[0].square().sum().backward()
    optimizer.step()
    assert set(optimizer.factor_norms()) == {"in_proj", "out_proj"}


def test_a_mask_is_forgotten_after_the_step() -> None:
    """Case 62: the next batch has another padding, or none."""
    inputs = torch.randn(4, 9, 6)

    def loop(model: nn.Linear, optimizer: KFAC, odd: bool) -> None:
        for number in range(2):
            optimizer.zero_grad()
            if odd and number == 0:
                optimizer.use_mask(torch.arange(9).expand(4, -1) < 5)
            model(inputs).square().sum().backward()
            optimizer.step()

    plain, odd = norms_both_ways(loop, lambda: nn.Linear(6, 3))
    assert odd == plain


def test_an_unused_optimizer_is_no_rival_while_another_models_steps_too() -> None:
    """Case 78: a GAN whose notebook cell runs again."""
    model, other = mlp(), mlp()
    old = THOR(model, norm_control="graft")
    train(model, old, [data(8)])
    optimizer, others = THOR(model, norm_control="graft"), THOR(other, norm_control="graft")
    for _ in range(3):
        train(other, others, [data(8)])
        train(model, optimizer, [data(8)])
    assert old.engine.steps == 1


def test_a_failed_backward_before_a_skipped_step_leaves_nothing() -> None:
    """Kind of case 46: the step is skipped for what it left, and everything is zeroed in place."""
    batches = [data(8) for _ in range(2)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        train(model, optimizer, batches[:1])
        if odd:
            model.zero_grad(set_to_none=False)
            fail_between_layers(model, batches[0][0], scale=30)
            gradient_of(model[2].bias).fill_(float("nan"))
            optimizer.step()
            assert optimizer.skipped_steps == 1
        model.zero_grad(set_to_none=False)
        backward(model, batches[1])
        optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert plain == pytest.approx(odd, rel=0.05)  # rows are drawn by the step's number


@pytest.mark.parametrize("drop", ["in place", "none"])
def test_a_failed_backward_whose_gradients_are_dropped_leaves_nothing(drop: str) -> None:
    """Kind of case 46: gradients of the layers that it had passed are there, and zeroed."""
    batches = [data(8) for _ in range(3)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        train(model, optimizer, batches[:1])
        if odd:
            fail_between_layers(model, 30 * batches[0][0])
        for batch in batches[1:]:
            model.zero_grad(set_to_none=drop == "none")
            backward(model, batch)
            optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert odd == plain


def test_optimizers_of_two_projections_of_one_attention_both_hear_theirs() -> None:
    """Case 78: kind of 45, too: the inner of two watches hides the attention from the outer one."""
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    parts = [[model.in_proj_weight, model.in_proj_bias], list(model.out_proj.parameters())]
    both = [THOR(model, part, norm_control="graft", **AT_EVERY_STEP) for part in parts]
    for optimizer in (*both, *both):
        model.zero_grad()
        x = torch.randn(3, 5, 4)
        model(x, x, x)[0].square().sum().backward()
        optimizer.step()
    assert [set(one.factor_norms()) for one in both] == [{"in_proj"}, {"out_proj"}]


def test_layers_that_are_frozen_in_turn_have_curvature() -> None:
    """Case 48, 58: a GAN in one optimizer, layers that train one after the other."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    for step in range(6):
        for number in (0, 2):
            model[number].requires_grad_(step % 2 == number // 2)
        train(model, optimizer, [data(8)])
        (one,) = optimizer.last_decisions
        assert one.layer == "02"[step % 2]
        assert optimizer.factor_norms().keys() == {one.layer}


def test_a_thawed_layer_is_heard_at_once() -> None:
    """Case 58: with the statistics of the step in which it trains again."""

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        model[0].requires_grad_(not odd)
        train(model, optimizer, [data(8)])
        model[0].requires_grad_(True)
        torch.manual_seed(2)
        train(model, optimizer, [data(8)])

    plain, odd = norms_both_ways(loop)
    assert odd == plain


@pytest.mark.parametrize("kept", [False, True])
def test_gradients_that_are_zeroed_through_data_are_dropped(kept: bool) -> None:
    """Case 46: the classic way; it leaves no trace but the zeros."""
    batches = [data(8) for _ in range(4)]

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for batch in batches if odd else batches[-1:]:
            for parameter in model.parameters():
                if parameter.grad is None:
                    continue
                if kept:
                    parameter.grad.data.zero_()
                else:
                    parameter.grad.data = torch.zeros_like(parameter)
            backward(model, batch)
        optimizer.step()

    plain, odd = norms_both_ways(loop)
    assert odd == plain


def test_failed_calls_of_autograd_grad_leave_no_hooks() -> None:
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    for _ in range(5):
        hidden = model[1](model[0](data(8)[0]))
        hidden.register_hook(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            torch.autograd.grad(model[2](hidden).sum(), list(model.parameters()))
    train(model, optimizer, [data(8)])
    assert not any(parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize("late", [False, True])
def test_sampled_labels_of_a_dropped_batch_are_dropped(late: bool) -> None:
    """Case 46: with the forward that they were sampled from."""
    inputs, _ = data(8)
    targets = torch.randint(3, (8,))

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for number in range(4 if odd else 0):
            outputs = model(inputs)
            if late:
                nn.functional.cross_entropy(outputs, targets).backward(retain_graph=True)
            optimizer.sample_fisher(outputs, generator=draws(number))
            optimizer.zero_grad()
        outputs = model(inputs)
        optimizer.sample_fisher(outputs, generator=draws(99))
        nn.functional.cross_entropy(outputs, targets).backward()
        optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=partial(exact, fisher="mc"))
    assert odd == plain


@pytest.mark.parametrize("how", ["nested", "followed inside", "removed"])
def test_no_layer_is_heard_twice(how: str) -> None:
    """Case 54, 59."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    if how == "removed":
        optimizer.remove()
    with optimizer.without_hooks():
        if how == "nested":
            with optimizer.without_hooks():
                pass
        for trained in (False, True):
            model[2].requires_grad_(trained)
            optimizer.coverage()
        assert not any(one._forward_hooks for one in model)
    expected = 0 if how == "removed" else 1
    assert [len(one._forward_hooks) for one in (model[0], model[2])] == [expected] * 2


def test_a_pruned_layer_comes_back() -> None:
    """Case 48: the same parameters under other names."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    train(model, optimizer, [data(8)])
    assert set(optimizer.factor_norms()) == {"2"}
    prune.remove(model[0], "weight")
    train(model, optimizer, [data(8)] * 2)
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.PRECONDITIONED}
    assert set(optimizer.factor_norms()) == {"0", "2"}


class Renamed(nn.Module):
    """A body, and a head under one of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.old = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        head = self.get_submodule("head" if "head" in self._modules else "old")
        outputs: Tensor = head(self.body(inputs))
        return outputs


def test_a_renamed_layer_keeps_its_curvature_under_its_new_name() -> None:
    """Case 48."""
    model = Renamed()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    before = optimizer.factor_norms()
    model.head = model.old
    del model.old
    assert {entry.name.split(".")[0] for entry in optimizer.coverage()} == {"body", "head"}
    assert optimizer.factor_norms() == {"body": before["body"], "head": before["old"]}
    assert set(optimizer.state_dict()["curvature"]["layers"]) == {"body", "head"}


def test_micro_batches_that_make_a_graph_count_all() -> None:
    """Case 45: torch puts each sum into a new tensor then."""
    batches = [data(8) for _ in range(3)]

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for batch in batches:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that it may leak
                backward(model, batch, create_graph=odd)
        optimizer.step()
        model.zero_grad()

    plain, odd = norms_both_ways(loop)
    assert odd == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("told", [False, True])
def test_a_preconditioner_behind_a_scaler(told: bool) -> None:
    """Case 71: its scale enters G unless it is named; where it is not, that is said."""
    batches = [data(8) for _ in range(2)]

    def trained(scaled: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = mlp()
        preconditioner = Preconditioner(model, **AT_EVERY_STEP_OF_ITS_OWN)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        if told and scaled:
            preconditioner.use_scaler(scaler)
        for inputs, targets in batches:
            sgd.zero_grad()
            scaler.scale(mean_half_square(model(inputs), targets)).backward()
            scaler.unscale_(sgd)
            preconditioner.step()
            scaler.step(sgd)
            scaler.update()
        return weights(model)

    plain = trained(scaled=False)
    with nullcontext() if told else pytest.warns(CurvatureWarning, match="use_scaler"):
        scaled = trained(scaled=True)
    if told:
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["skip", "raise", "ignore"])
def test_a_preconditioner_leaves_gradients_that_are_not_finite(how: Any) -> None:
    """Case 72."""
    model = mlp()
    refresh = Refresh(on_nonfinite=how)
    preconditioner = Preconditioner(model, **AT_EVERY_STEP_OF_ITS_OWN, refresh=refresh)
    backward(model, data(8))
    preconditioner.step()
    before = preconditioner.factor_norms()
    model.zero_grad()
    inputs, targets = data(8)
    backward(model, (inputs * math.nan, targets))
    raw = gradients(model)
    with pytest.raises(NonFiniteGradientError) if how == "raise" else nullcontext():
        preconditioner.step()
    assert preconditioner.factor_norms() == before
    if how != "ignore":
        torch.testing.assert_close(gradients(model), raw, equal_nan=True)


def test_two_backwards_through_one_forward_are_one_sum() -> None:
    """Case 15: two losses of one pass; what counts is the gradient that is there."""
    inputs, targets = (one.double() for one in data(8))

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        outputs = model(inputs)
        one, other = mean_half_square(outputs, targets), outputs.exp().mean()
        if odd:
            one.backward(retain_graph=True)
            other.backward(retain_graph=True)
        else:
            (one + other).backward()
        optimizer.step()

    plain, odd = norms_both_ways(loop, lambda: mlp().double())
    assert odd == pytest.approx(plain, rel=1e-9)


def test_gradients_that_wait_hinder_no_change_of_types() -> None:
    """Case 48: torch swaps tensors then, and none that somebody refers to weakly."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        train(model, optimizer, [data(8)])
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_model_that_was_saved_whole_takes_hooks() -> None:
    """Case 59: whatever numbers torch gives them in another process."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    twin = pickle.loads(pickle.dumps(model))
    numbers = [*twin[0]._forward_hooks, *twin[0]._forward_hooks_with_kwargs]
    assert min(numbers) > 1 << 32
    twin(data(8)[0])
    assert not twin[0]._forward_hooks
    assert not twin[0]._forward_hooks_with_kwargs


def test_an_interrupted_attention_is_left_at_the_next_step() -> None:
    """Case 51: torch calls no hook after a KeyboardInterrupt."""
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    x, plain = torch.randn(3, 5, 4), model.forward
    before = torch._C._len_torch_function_stack()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model.forward = stop  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        model(x, x, x)
    assert torch._C._len_torch_function_stack() == before + 1
    model.forward = plain  # type: ignore[method-assign]
    model(x, x, x)[0].sum().backward()
    optimizer.step()
    assert torch._C._len_torch_function_stack() == before


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("masked", [False, True])
def test_positions_first_are_positions(sharing: str, masked: bool) -> None:
    """Case 62: torch's own transformer layers put them there unless they are told otherwise."""
    inputs, weight = torch.randn(4, 6, 8).double(), torch.randn(4, 6, 8)

    def norms(batch_first: bool) -> dict[str, float]:
        torch.manual_seed(1)
        model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first).double()
        optimizer = exact(model, weight_sharing=sharing)
        if masked:
            optimizer.use_mask(torch.arange(6).expand(4, -1) < 4)
        outputs = model(inputs) if batch_first else model(inputs.transpose(0, 1)).transpose(0, 1)
        (outputs * weight).sum(1).mean().backward()
        optimizer.step()
        return optimizer.factor_norms()

    assert norms(batch_first=False) == pytest.approx(norms(batch_first=True), rel=1e-9)


def test_hooks_that_change_the_output_before_ours_are_seen() -> None:
    """Case 47: G belongs to the output of the layer itself."""
    batch = data(8)

    def loop(model: nn.Sequential, optimizer: KFAC, odd: bool) -> None:
        for number in range(3):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            if number == 0:
                model[0].register_forward_hook(lambda *call: 3.0 * call[2], prepend=odd)

    plain, odd = norms_both_ways(loop)
    assert odd == plain


def test_a_rate_that_a_schedule_overrules_is_said() -> None:
    """Case 60: once."""
    model = mlp()
    optimizer = THOR(
        model,
        norm_control="graft",
        lr=PolynomialDecay(0.1, end_epoch=2.0, power=1.0, steps_per_epoch=10),
    )
    train(model, optimizer, [data(8)])

    def go() -> None:
        for _ in range(2):
            optimizer.param_groups[0]["lr"] = 0.0
            train(model, optimizer, [data(8)])

    with pytest.warns(
        CurvatureWarning, match="lr=0.0 of a parameter group was set by hand"
    ) as told:
        go()
    assert len(told) == 1


def test_what_records_operations_records_the_bare_model() -> None:
    """Case 54."""
    model = mlp()
    inputs = data(8)[0]
    bare = [node.target for node in make_fx(model)(inputs).graph.nodes]
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    assert [node.target for node in make_fx(model)(inputs).graph.nodes] == bare
    train(model, optimizer, [data(8)])
    assert set(optimizer.factor_norms()) == {"0", "2"}
