"""Promise: a model with hooks does all that the bare model does, whatever its calls hold."""

from __future__ import annotations

import copy
import gc
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from helpers import AT_EVERY_STEP, data, gradients, mean_half_square, mlp, train, weights
from torch_thor import THOR, CurvatureWarning, LayerAdapter, Treatment

if TYPE_CHECKING:
    from collections.abc import Callable

NESTED = "ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"
DEPRECATED = "ignore:.*torch.jit.*deprecated:FutureWarning"


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Labelled(Tensor):
    """A class without rules of its own, as torchvision's or MONAI's images have."""


class Wrapped(Tensor):
    """A class with rules of its own."""

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        like: dict[str, Any] = {"dtype": inner.dtype, "device": inner.device}
        return Tensor._make_wrapper_subclass(cls, inner.shape, **like)

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def bare(value: Any) -> Any:
            return value.held if isinstance(value, Wrapped) else value

        return func(*torch.utils._pytree.tree_map(bare, args), **(kwargs or {}))


def jagged() -> Tensor:
    parts = [torch.randn(2, 5), torch.randn(3, 5)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


def values(outputs: Tensor) -> Tensor:
    return outputs.values() if outputs.is_nested else outputs


def gradients_at(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    model.zero_grad()
    values(model(inputs)).square().sum().backward()
    return gradients(model)


STRANGE: dict[str, Callable[[], Tensor]] = {
    "nested": jagged,
    "sparse": lambda: torch.randn(8, 5).relu().to_sparse(),
    "wrapped": lambda: Wrapped(torch.randn(8, 5)),
}


@pytest.mark.filterwarnings(NESTED)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("build", [partial(THOR, norm_control="graft"), THOR], ids=["sgd", "adamw"])
def test_what_cannot_be_understood_steps_by_the_base_rule_and_is_said_once(
    kind: str, build: Any
) -> None:
    """Case 51: forward and gradients are those of the bare model."""
    model = nn.Sequential(nn.Linear(5, 3))
    bare = copy.deepcopy(model)
    optimizer = build(model, interval=1)
    reference = build(bare, exclude=("0",))
    inputs = [STRANGE[kind]() for _ in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CurvatureWarning)
        for one in inputs:
            for ours, theirs in zip(gradients_at(model, one), gradients_at(bare, one), strict=True):
                assert torch.equal(ours, theirs)
            optimizer.step()
            reference.step()
    said = [str(one.message) for one in caught if one.category is CurvatureWarning]
    assert len(said) == 1
    assert "'0'" in said[0]
    assert all(torch.equal(*pair) for pair in zip(weights(model), weights(bare), strict=True))
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.BASE}


def test_a_subclass_without_rules_of_its_own_is_preconditioned() -> None:
    """Case 51: its values are plain memory."""
    found = []
    for labelled in (False, True):
        torch.manual_seed(1)
        model = mlp()
        optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
        for inputs, targets in [data(8), data(8)]:
            optimizer.zero_grad()
            given = inputs.as_subclass(Labelled) if labelled else inputs
            loss = mean_half_square(model(given), targets)
            loss.as_subclass(Tensor).backward()
            optimizer.step()
        found.append(weights(model))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@pytest.mark.parametrize("sizes", [(0, 3), (5, 0)])
def test_layers_without_inputs_or_outputs(sizes: tuple[int, int]) -> None:
    """Case 51."""
    model = nn.Sequential(nn.Linear(*sizes), nn.Flatten())
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, sizes[0])).square().sum().backward()
        optimizer.step()
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.BASE}


def test_an_empty_batch_among_others_is_no_event() -> None:
    """Case 51: the last shard of a data set may hold nothing."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    train(model, optimizer, [data(8)])
    optimizer.zero_grad()
    model(torch.empty(0, 5)).sum().backward()
    optimizer.step()
    train(model, optimizer, [data(8)])
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.PRECONDITIONED}


class Broken(LayerAdapter[nn.Linear]):
    """An adapter with an error in each of its methods that a call needs."""

    def __init__(self, where: str) -> None:
        self.where = where

    def geometry(self, module: nn.Linear, *, bias: bool) -> Any:
        from torch_thor import Geometry  # noqa: PLC0415

        return Geometry(1, module.out_features, module.in_features, bias)

    def _fail(self, here: str) -> None:
        if here == self.where:
            raise ZeroDivisionError("by the adapter")

    def call_shape(self, module: nn.Linear, inputs: Tensor, output: Tensor) -> tuple[int, int]:  # noqa: ARG002
        self._fail("shape")
        return len(inputs), 1

    def input_rows(self, module: nn.Linear, inputs: Tensor, plan: Any, *, bias: bool) -> Tensor:  # noqa: ARG002
        self._fail("inputs")
        return nn.functional.pad(inputs, (0, 1), value=1.0).unsqueeze(0)

    def output_rows(self, module: nn.Linear, gradient: Tensor, plan: Any) -> Tensor:  # noqa: ARG002
        self._fail("outputs")
        return gradient.unsqueeze(0)


class Custom(nn.Linear):
    """A layer of the user's."""


@pytest.mark.parametrize("where", ["shape", "inputs", "outputs"])
def test_an_error_in_an_adapter_costs_the_layer_its_curvature_only(where: str) -> None:
    """Case 51: and is said with its own words."""
    from torch_thor.layers import registry  # noqa: PLC0415

    model = nn.Sequential(Custom(5, 4), nn.Tanh(), nn.Linear(4, 3))
    registry._ADAPTERS[Custom] = Broken(where)
    try:
        optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    finally:
        del registry._ADAPTERS[Custom]
    with pytest.warns(CurvatureWarning, match="'0'.*ZeroDivisionError: by the adapter") as caught:
        train(model, optimizer, [data(8), data(8)])
    assert len(caught) == 1
    assert set(optimizer.factor_norms()) >= {"2"}


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_model_compiled_as_one_graph_trains_and_says_what_to_do(order: str) -> None:
    """Case 52."""
    torch._dynamo.reset()
    model = mlp()
    bare = copy.deepcopy(model)
    run: Any = model
    if order == "before":
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    if order == "after":
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
    batches = [data(8) for _ in range(3)]
    with pytest.warns(CurvatureWarning, match="fullgraph") as caught:
        train(run, optimizer, batches)
    assert len(caught) == 2
    train(bare, THOR(bare, norm_control="graft", exclude=("*",)), batches)
    for one, other in zip(weights(model), weights(bare), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings(DEPRECATED)
def test_traces_and_exports_are_those_of_the_bare_model() -> None:
    """Case 54: in steps with statistics too."""
    model = mlp()
    bare = copy.deepcopy(model)
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    example = torch.randn(2, 5)
    for train_first in (False, True):
        if train_first:
            train(model, optimizer, [data(8)])
            bare.load_state_dict(model.state_dict())
        traced, expected = (torch.jit.trace(one, example) for one in (model, bare))
        kinds = [[node.kind() for node in one.inlined_graph.nodes()] for one in (traced, expected)]
        assert kinds[0] == kinds[1]
        for strict in (False, True):
            exported, plain = (
                torch.export.export(one, (example,), strict=strict) for one in (model, bare)
            )
            assert exported.graph_module.code == plain.graph_module.code
            assert torch.equal(exported.module()(example), bare(example))
    train(model, optimizer, [data(8)])
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.PRECONDITIONED}


@pytest.mark.filterwarnings(DEPRECATED)
def test_tensorboards_graph(tmp_path: Any) -> None:
    """Case 54."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is optional")
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, torch.randn(2, 5))
    train(model, optimizer, [data(8)])


@pytest.mark.filterwarnings(DEPRECATED)
def test_scripting_works_without_hooks_and_says_so_with_them() -> None:
    """Case 54: TorchScript compiles hooks and knows none that it may leave out."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    example = torch.randn(2, 5)
    with pytest.raises(AttributeError, match="without_hooks"):
        torch.jit.script(model)
    with optimizer.without_hooks():
        assert hooks_of(model) == 0
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(example), model(example))
    train(model, optimizer, [data(8)])
    assert {entry.treatment for entry in optimizer.coverage()} == {Treatment.PRECONDITIONED}


@pytest.mark.filterwarnings(DEPRECATED)
def test_a_scripted_part_of_a_model_trains_by_the_base_rule() -> None:
    """Case 54: its parameters are listed as such."""
    model = nn.Sequential(torch.jit.script(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    before = weights(model)
    train(model, optimizer, [data(8), data(8)])
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))
    assert set(optimizer.factor_norms()) == {"2"}


def test_a_collected_optimizer_leaves_no_hook() -> None:
    """Case 59: in a notebook, in a search over settings."""
    model = nn.Sequential(nn.Linear(5, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 3))
    for _ in range(50):
        THOR(model, norm_control="graft")
    gc.collect()
    assert hooks_of(model) == 0


def test_a_collected_optimizer_that_has_stepped_leaves_no_hook() -> None:
    """Case 59."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **AT_EVERY_STEP)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, [data(8)])
    scheduler.step()
    del optimizer, scheduler
    gc.collect()
    assert hooks_of(model) == 0


def test_copies_lose_what_is_left_of_hooks_with_their_first_call() -> None:
    """Case 59."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = THOR(model, norm_control="graft")
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 4))
    assert hooks_of(twin) == 0
    assert hooks_of(model) == 2
    assert optimizer.wants_statistics
