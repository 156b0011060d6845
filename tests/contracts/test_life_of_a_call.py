"""Promise: a call counts exactly while the gradient that it made is the gradient of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helpers import AT_EVERY_STEP, EXACT, data, gradient_of, gradients, mean_half_square, mlp, train
from orders import at_every_step, fail_between_layers, norms_both_ways, tensors_alive
from torch_thor import KFAC, THOR, CurvatureWarning, Preconditioner, Statistics

if TYPE_CHECKING:
    from torch.optim import Optimizer

bce = nn.functional.binary_cross_entropy_with_logits
KINDS = pytest.mark.parametrize("kind", [THOR, KFAC])
OPTIONS: dict[Any, dict[str, Any]] = {
    THOR: AT_EVERY_STEP,
    KFAC: {"factor_interval": 1, "inverse_interval": 1},
}


def optimizer_zero(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    optimizer.zero_grad()


def optimizer_zero_in_place(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    optimizer.zero_grad(set_to_none=False)


def model_zero(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    model.zero_grad()


def model_zero_in_place(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    model.zero_grad(set_to_none=False)


def none(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    for parameter in model.parameters():
        parameter.grad = None


def new_tensor(model: nn.Module, optimizer: Optimizer) -> None:  # noqa: ARG001
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


DROPS = pytest.mark.parametrize(
    "drop",
    [optimizer_zero, optimizer_zero_in_place, model_zero, model_zero_in_place, none, new_tensor],
)


@KINDS
@DROPS
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_a_discriminator_knows_nothing_of_the_generators_turn(
    kind: Any, drop: Any, scale: float
) -> None:
    """Case 45."""

    def norms(*, generators_turn: bool) -> dict[str, float]:
        torch.manual_seed(0)
        d, g = nn.Linear(6, 1), nn.Linear(4, 6)
        optimizer = kind(d, lr=0.05, **OPTIONS[kind])
        for _ in range(3):
            real, fake = torch.randn(16, 6), g(torch.randn(16, 4))
            drop(d, optimizer)
            bce(d(real), torch.ones(16, 1)).backward()
            bce(d(fake.detach()), torch.zeros(16, 1)).backward()
            optimizer.step()
            if generators_turn:
                (scale * bce(d(fake), torch.ones(16, 1))).backward()
        return optimizer.factor_norms()

    assert norms(generators_turn=True) == norms(generators_turn=False)


@KINDS
@DROPS
@pytest.mark.parametrize("scale", [300.0, float("nan")])
def test_a_dropped_batch_leaves_no_trace(kind: Any, drop: Any, scale: float) -> None:
    """Case 46."""
    batches = [data(8) for _ in range(3)]
    found = []
    for wild in (False, True):
        torch.manual_seed(1)
        model = mlp()
        optimizer = kind(model, **OPTIONS[kind])
        for inputs, targets in batches:
            if wild:
                (scale * mean_half_square(model(inputs), 3 * targets)).backward()
                drop(model, optimizer)
            train(model, optimizer, [(inputs, targets)])
        found.append((optimizer.factor_norms(), [p.detach().clone() for p in model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


@DROPS
@pytest.mark.parametrize("afterwards", ["clipped", "as it is"])
def test_a_micro_batch_is_dropped_and_the_following_ones_count(drop: Any, afterwards: str) -> None:
    """Case 46: among accumulated ones, also where gradients were changed in place."""
    batches = [data(8) for _ in range(4)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        first = 0 if odd else 2
        for number, (inputs, targets) in enumerate(batches[first:], first):
            mean_half_square(model(inputs), targets).backward()
            if afterwards == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            if number == 1:
                drop(model, optimizer)
        optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert odd == plain


@DROPS
def test_zero_grad_between_forward_and_backward_changes_nothing(drop: Any) -> None:
    """Case 46."""
    batches = [data(8) for _ in range(3)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = mean_half_square(model(inputs), targets)
            if odd:
                drop(model, optimizer)
            loss.backward()
            optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert odd == plain


def test_a_gradient_that_is_zeroed_before_the_step_counts_nothing() -> None:
    """Case 46: without any later backward that could be noticed."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    before = optimizer.factor_norms()
    mean_half_square(*[3 * part for part in (model(data(8)[0]), data(8)[1])]).backward()
    model.zero_grad(set_to_none=False)
    optimizer.step()
    assert optimizer.factor_norms() == before


def test_a_layer_whose_gradient_is_always_zero_still_counts() -> None:
    """Zeros by themselves are no sign of a drop, also after clipping."""
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(-100.0)  # every unit behind it is dead
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert set(optimizer.factor_norms()) == {"0", "2"}
    ready = {layer.name for stack in optimizer.engine.stacks for layer in stack.layers}
    assert ready == {"0", "2"}
    assert optimizer.engine.stacks[0].a.traces[0].sum() > 0


@KINDS
@DROPS
@pytest.mark.usefixtures("own_objects")
def test_memory_stays_flat_over_300_dropped_backwards(kind: Any, drop: Any) -> None:
    """Case 46: without any step."""
    model = mlp()
    optimizer = kind(model, **OPTIONS[kind])
    inputs, targets = data(8)
    seen = []
    for number in range(300):
        mean_half_square(model(inputs), targets).backward()
        drop(model, optimizer)
        if number % 100 == 99:
            seen.append(tensors_alive())
    assert len(set(seen)) == 1, seen


@pytest.mark.usefixtures("own_objects")
def test_rows_go_with_the_gradient_and_not_with_the_next_step() -> None:
    """Case 46: memory is free as soon as nothing needs it."""
    model = mlp()
    optimizer = KFAC(model)
    inputs, targets = data(64)
    before = tensors_alive()
    mean_half_square(model(inputs), targets).backward()
    assert tensors_alive() > before
    model.zero_grad()
    assert tensors_alive() == before
    assert optimizer.wants_statistics


@pytest.mark.parametrize("shape", [(16,), (4, 4)])
@pytest.mark.parametrize("change", ["clamped", "scaled", "by a view's own hook"])
def test_g_is_taken_from_the_gradient_that_meets_the_weight(
    shape: tuple[int, ...], change: str
) -> None:
    """Case 47: a hook of the user's on the layer's output."""
    model = nn.Linear(6, 3, bias=False).double()
    optimizer = KFAC(model, lr=0.0, statistics=Statistics(decay=0.0, rows=None))
    x = torch.randn(*shape, 6).double()
    y = model(x)
    y.register_hook(lambda g: g.clamp(-0.01, 0.01) if change == "clamped" else 0.1 * g)
    y.retain_grad()
    y.square().sum().div(shape[0]).backward()
    optimizer.step()
    rows, of_rows = x.flatten(0, -2), gradient_of(y).flatten(0, -2)
    a, g = rows.T @ rows / len(rows), shape[0] * of_rows.T @ of_rows
    expected = float(a.norm() * g.norm())
    assert optimizer.factor_norms()[""] == pytest.approx(expected, rel=1e-9)


def test_two_optimizers_on_parts_of_one_model_that_step_in_turn() -> None:
    """Kind of case 45: each has the statistics of its own turn."""
    batches = [data(8) for _ in range(6)]

    def norms(turns: tuple[str, ...]) -> list[dict[str, float]]:
        torch.manual_seed(1)
        model = mlp()
        parts = {"first": model[0], "last": model[2]}
        both = {
            name: THOR(model, part.parameters(), norm_control="graft", lr=0.0, **AT_EVERY_STEP)
            for name, part in parts.items()
        }
        for number, (inputs, targets) in enumerate(batches):
            turn = ("first", "last")[number % 2]
            if turn in turns:
                model.zero_grad()
                mean_half_square(model(inputs), targets).backward()
                both[turn].step()
        return [both[name].factor_norms() for name in turns]

    in_turn = norms(("first", "last"))
    assert in_turn == [*norms(("first",)), *norms(("last",))]


@pytest.mark.parametrize("between", [False, True])
def test_gradients_that_autograd_grad_returns_count_where_they_are_put_into_grad(
    between: bool,
) -> None:
    """Case 45, 46: and nowhere else."""
    batches = [data(8) for _ in range(3)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        parameters = list(model.parameters())
        for inputs, targets in batches:
            optimizer.zero_grad()
            if between:  # a norm that is logged, a penalty that is looked at
                torch.autograd.grad(mean_half_square(model(2 * inputs), targets), parameters)
            loss = mean_half_square(model(inputs), targets)
            if odd:
                taken = torch.autograd.grad(loss, parameters)
                for parameter, gradient in zip(parameters, taken, strict=True):
                    parameter.grad = gradient
            else:
                loss.backward()
            optimizer.step()

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert odd == plain
    torch.manual_seed(1)
    model = mlp()
    optimizer = at_every_step(model)
    train(model, optimizer, batches)
    assert optimizer.factor_norms() == plain


def test_a_gradient_that_was_replaced_says_so_and_steps_by_the_base_rule() -> None:
    """Case 46: nobody knows which calls a foreign tensor comes from."""
    model = mlp()
    preconditioner = Preconditioner(model, **EXACT)
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = 2 * gradient_of(parameter)
    before = gradients(model)
    with pytest.warns(CurvatureWarning, match="replaced") as caught:
        preconditioner.step()
    assert len(caught) == 2
    assert all(map(torch.equal, gradients(model), before))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_that_is_also_called_outside(reentrant: bool) -> None:
    """Case 5: a backward inside a backward, both of which reach one weight."""

    def loop(layer: nn.Linear, optimizer: THOR, odd: bool) -> None:
        inputs = torch.randn(8, 5, requires_grad=True)
        hidden = layer(inputs).tanh()
        if odd:
            hidden = torch.utils.checkpoint.checkpoint(layer, hidden, use_reentrant=reentrant)
        else:
            hidden = layer(hidden)
        layer(hidden.tanh()).square().sum().backward()
        optimizer.step()

    plain, odd = norms_both_ways(loop, lambda: nn.Linear(5, 5), at_every_step)
    assert odd == pytest.approx(plain, rel=1e-5)


def test_a_backward_that_fails_midway_leaves_nothing() -> None:
    """Kind of case 46: an error in a hook of the user's, caught by the loop."""
    batches = [data(8) for _ in range(2)]

    def loop(model: nn.Sequential, optimizer: THOR, odd: bool) -> None:
        if odd:
            fail_between_layers(model, batches[0][0])
        train(model, optimizer, batches)

    plain, odd = norms_both_ways(loop, optimizer_of=at_every_step)
    assert odd == plain


@KINDS
def test_a_state_that_is_loaded_before_a_step_drops_its_calls_and_blames_nobody(kind: Any) -> None:
    model = mlp()
    optimizer = kind(model, **OPTIONS[kind])
    for _ in range(2):
        optimizer.zero_grad()
        mean_half_square(model(torch.randn(8, 5)), torch.randn(8, 3)).backward()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()  # without a warning, which would be an error here
        assert not optimizer.last_decisions
    optimizer.zero_grad()
    mean_half_square(model(torch.randn(8, 5)), torch.randn(8, 3)).backward()
    optimizer.step()
    assert optimizer.last_decisions
