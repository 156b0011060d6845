"""Promise: output layers are found by themselves, and train by the base rule where that is said."""

from __future__ import annotations

import copy
import io
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import assert_same_weights, data, mean_half_square, mlp, train
from torch_thor import THOR, Base, InvalidOptionError, StateMismatchError, Treatment

if TYPE_CHECKING:
    from collections.abc import Callable

LEFT = Base("adamw", lr_scale=0.15, outputs=True)


def found(optimizer: THOR) -> set[str]:
    """The weights that the report calls output layers."""
    said = [one for one in optimizer.coverage() if one.reason == "output layer"]
    assert all(one.treatment is Treatment.BASE for one in said)
    return {one.name.removesuffix(".weight") for one in said if one.name.endswith("weight")}


class Net(nn.Module):
    """Layers a, b, c and d of width 6, wired by a function."""

    def __init__(self, wire: Callable[[Any, Tensor], Any]) -> None:
        """Makes the layers."""
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 6)
        self.c, self.d = nn.Linear(6, 6), nn.Linear(6, 6)
        self.wire = wire

    def forward(self, x: Tensor) -> Any:
        """Wires them."""
        return self.wire(self, x)


def in_a_row(net: Any, x: Tensor) -> Tensor:
    return net.d(net.c(net.b(net.a(x).relu_())).tanh())


def two_heads(net: Any, x: Tensor) -> Tensor:
    return net.c(net.b(net.a(x))) + 2 * net.d(net.b(net.a(x)))


def residual(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    x = x + net.b(x)
    return net.d(x + net.c(x)).log_softmax(-1)


def recurrent(net: Any, x: Tensor) -> Tensor:
    hidden = net.a(x)
    for _ in range(3):
        hidden = net.d(net.c(net.b(hidden))).tanh()
    return hidden


def reentrant(net: Any, x: Tensor) -> Tensor:
    inner = checkpoint(lambda h: net.c(net.b(h).tanh()), net.a(x), use_reentrant=True)
    return net.d(inner)


def all_reentrant(net: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda h: net.d(net.c(net.b(h))), net.a(x), use_reentrant=True)


def recomputed(net: Any, x: Tensor) -> Tensor:
    inner = checkpoint(lambda h: net.c(net.b(h).tanh()), net.a(x), use_reentrant=False)
    return net.d(inner)


def over_positions(net: Any, x: Tensor) -> Tensor:
    return net.d(
        nn.functional.relu(net.c(net.b(net.a(x[:, None].expand(-1, 3, -1)))), inplace=True)
    )


WIRES: dict[Callable[[Any, Tensor], Tensor], set[str]] = {
    in_a_row: {"d"},
    two_heads: {"c", "d"},
    residual: {"d"},
    recurrent: set(),
    reentrant: {"d"},
    all_reentrant: {"d"},
    recomputed: {"d"},
    over_positions: {"d"},
}


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.__name__)
def test_they_are_found_by_the_way_of_the_gradient(wire: Callable[[Any, Tensor], Tensor]) -> None:
    net = Net(wire)
    optimizer = THOR(net, base=LEFT)
    before = net.d.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    assert found(optimizer) == WIRES[wire]
    assert set(optimizer.factor_norms()) == {"a", "b", "c", "d"} - WIRES[wire]
    assert ("exp_avg" in optimizer.state[net.d.weight]) == ("d" in WIRES[wire])
    assert not torch.equal(before, net.d.weight)


def test_backwards_before_a_step_count_together() -> None:
    """Micro-batches, of which one sees the inner layers alone: derivatives of the outputs."""
    net = Net(in_a_row)
    optimizer = THOR(net, base=LEFT)
    net.b(net.a(torch.randn(8, 5))).square().mean().backward()
    net(torch.randn(8, 5)).square().mean().backward()
    optimizer.step()
    assert found(optimizer) == {"d"}


@pytest.mark.parametrize("how", ["excluded", "frozen", "tied", "another optimizer's"])
def test_a_head_that_is_not_preconditioned_hides_the_layers_before_it(how: str) -> None:
    net = Net(in_a_row)
    exclude, chosen = ("d",) if how == "excluded" else (), None
    if how == "frozen":
        net.d.requires_grad_(requires_grad=False)
    if how == "tied":
        net.table = nn.Embedding(6, 6)
        net.table.weight = net.d.weight
    if how == "another optimizer's":
        chosen = [*net.a.parameters(), *net.b.parameters(), *net.c.parameters()]
    optimizer = THOR(net, chosen, base=LEFT, exclude=exclude)
    train(net, optimizer, [(torch.randn(8, 5), torch.randn(8, 6))])
    assert found(optimizer) == set()
    assert set(optimizer.factor_norms()) == {"a", "b", "c"}


@pytest.mark.parametrize("model", [nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3))])
def test_a_model_of_output_layers_alone_keeps_their_curvature(model: nn.Module) -> None:
    optimizer = THOR(model, base=LEFT)
    train(model, optimizer, [data(8)])
    assert found(optimizer) == set()
    assert len(optimizer.factor_norms()) == 1


def test_an_attention_at_the_end_gives_its_output_projection() -> None:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = THOR(model, base=LEFT)
    x = torch.randn(4, 3, 8)
    model(x, x, x)[0].square().mean().backward()
    optimizer.step()
    assert found(optimizer) == {"out_proj"}
    assert set(optimizer.factor_norms()) == {"in_proj"}


def test_no_is_an_answer_and_the_default_of_a_base() -> None:
    for base in (Base("adamw"), Base("adamw", outputs=False)):
        model = mlp()
        optimizer = THOR(model, base=base)
        train(model, optimizer, [data(8)])
        assert found(optimizer) == set()
        assert set(optimizer.factor_norms()) == {"0", "2"}


def test_nothing_listens_any_longer_once_they_are_known() -> None:
    model = mlp()
    optimizer = THOR(model, base=LEFT)
    hooks = [len(model[0]._forward_hooks)]
    train(model, optimizer, [data(8)])
    hooks += [len(model[place]._forward_hooks) for place in (0, 2)]
    assert hooks == [2, 1, 1]


def test_a_model_that_grows_has_another_output_layer() -> None:
    model = mlp()
    optimizer = THOR(model, base=LEFT, interval=1)
    train(model, optimizer, [data(8)])
    model.append(nn.Linear(3, 3))
    optimizer.add_param_group({"params": model[3].parameters()})
    train(model, optimizer, [data(8), data(8)])
    assert found(optimizer) == {"3"}
    assert set(optimizer.factor_norms()) == {"0", "2"}


def test_a_compiled_model_shows_them_too() -> None:
    torch._dynamo.reset()
    model = mlp()
    run = torch.compile(model, backend="aot_eager")
    optimizer = THOR(model, base=LEFT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's, of its own looking at gradients
        for _ in range(3):
            optimizer.zero_grad()
            mean_half_square(run(torch.randn(8, 5)), torch.zeros(8, 3)).backward()
            optimizer.step()
    assert found(optimizer) == {"2"}
    assert set(optimizer.factor_norms()) == {"0"}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_resumed_run_knows_them_bit_for_bit(steps: int) -> None:
    model, batches = mlp(), [data(8) for _ in range(6)]
    optimizer = THOR(model, base=LEFT, interval=2)
    train(model, optimizer, batches[:steps])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    other = THOR(twin, base=LEFT, interval=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one, own in ((model, optimizer), (twin, other)):
        train(one, own, batches[steps:])
        assert found(own) == {"2"}
    assert_same_weights(model, twin)


def test_a_checkpoint_says_which_they_are() -> None:
    model, other = mlp(), mlp()
    kept = THOR(model, base="adamw", interval=1)  # as of a version that knew of none
    left = THOR(other, base=LEFT, interval=1)
    for one, optimizer in ((model, kept), (other, left)):
        train(one, optimizer, [data(8)])
    saved = left.state_dict()
    with pytest.raises(StateMismatchError, match="missing"):
        kept.load_state_dict(saved)
    part = THOR(copy.deepcopy(other), base=LEFT)
    part.load_curvature(saved)
    assert part.factor_norms()["0"] == left.factor_norms()["0"]
    left.load_state_dict(kept.state_dict())
    assert left.factor_norms() == kept.factor_norms()
    train(other, left, [data(8)])
    assert left.factor_norms()["2"] != kept.factor_norms()["2"]


def test_a_copy_finds_them_anew_or_knows_them() -> None:
    for steps in (0, 1):
        model = mlp()
        optimizer = THOR(model, base=LEFT)
        train(model, optimizer, [data(8)] * steps)
        twin, other = copy.deepcopy((model, optimizer))
        train(twin, other, [data(8)])
        assert found(other) == {"2"}


def test_memory_is_allocated_before_a_step_once_a_backward_has_shown_them() -> None:
    model = mlp()
    optimizer = THOR(model, base=LEFT)
    with pytest.raises(InvalidOptionError, match="a backward"):
        optimizer.allocate()
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    optimizer.allocate()
    assert [one.name for one in optimizer.memory().layers] == ["0"]


def test_a_backbone_that_thaws_hides_no_head() -> None:
    """While the head trains alone, it keeps its curvature."""
    model = mlp()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = THOR(model, lr=0.01, base=LEFT, interval=1)
    train(model, optimizer, [data(8)] * 2)
    assert found(optimizer) == set()
    for parameter in model[0].parameters():
        parameter.requires_grad_(True)
    train(model, optimizer, [data(8)] * 2)
    assert found(optimizer) == {"2"}
    assert set(optimizer.factor_norms()) == {"0"}


@pytest.mark.parametrize("early", [False, True])
def test_a_head_that_is_frozen_before_the_first_step_is_one_when_it_thaws(*, early: bool) -> None:
    """And so it is in a run that was resumed while it was frozen."""

    def built(*, early: bool) -> tuple[nn.Module, THOR]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
        )
        if early:
            model[4].requires_grad_(requires_grad=False)
        optimizer = THOR(model, base=LEFT, interval=2)
        model[4].requires_grad_(requires_grad=False)
        return model, optimizer

    batches = [data(8) for _ in range(6)]
    model, optimizer = built(early=early)
    train(model, optimizer, batches[:1])
    twin, other = built(early=not early)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, own in ((model, optimizer), (twin, other)):
        train(one, own, batches[1:3])
        one.get_submodule("4").requires_grad_()
        train(one, own, batches[3:])
        assert found(own) == {"4"}
    assert_same_weights(model, twin)


@pytest.mark.parametrize("first", ["bias", "4.bias"])
def test_a_head_is_found_where_all_weights_were_frozen_at_first(first: str) -> None:
    """As where biases are trained alone before all is."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(first in name)
    optimizer = THOR(model, base=LEFT, interval=2)
    train(model, optimizer, [data(8) for _ in range(2)])
    model.requires_grad_()
    train(model, optimizer, [data(8) for _ in range(3)])
    assert found(optimizer) == {"4"}
    assert set(optimizer.factor_norms()) == {"0", "2"}
