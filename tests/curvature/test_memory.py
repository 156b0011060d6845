"""The memory report is what is allocated, to the byte, and known from shapes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor, nn

from helpers import convnet, data, mlp
from models import Transformer, autoencoder, batch_for, included
from torch_thor import EKFAC, KFAC, THOR, Base, InvalidOptionError, MemoryReport, Preconditioner
from torch_thor.curvature.memory import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def wide() -> nn.Sequential:
    """A layer that the "auto" type of inverses and the bands count as large."""
    return nn.Sequential(nn.Linear(5, 400), nn.Linear(400, 400), nn.Linear(400, 3))


def many_types(model: nn.Module) -> tuple[Tensor, Tensor]:
    return batch_for(model)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]] = {
    "thor": (mlp, lambda model: THOR(model, norm_control="graft", lr=0.1)),
    "thor, large": (wide, lambda model: THOR(model, norm_control="graft", lr=0.1)),
    "float64": (lambda: mlp().double(), lambda model: THOR(model, norm_control="graft", lr=0.1)),
    "bfloat16": (lambda: mlp().bfloat16(), lambda model: THOR(model, norm_control="graft", lr=0.1)),
    "kfac": (convnet, lambda model: KFAC(model, lr=0.1)),
    "ekfac": (convnet, lambda model: EKFAC(model, lr=0.1)),
    "adamw beside": (
        convnet,
        lambda m: THOR(m, norm_control="graft", lr=0.1, base=Base("adamw"), exclude=("0",)),
    ),
    "no momentum": (
        convnet,
        lambda m: THOR(m, norm_control="graft", lr=0.1, momentum=0.0, exclude=("0",)),
    ),
    "all types": (
        autoencoder,
        lambda m: THOR(m, norm_control="graft", lr=0.1, split=3, include=included(m)),
    ),
    "transformer": (
        Transformer,
        lambda m: THOR(m, norm_control="graft", lr=0.1, split=5, include=included(m)),
    ),
}
EACH = pytest.mark.parametrize("name", CASES)


def built(name: str) -> tuple[nn.Module, Any]:
    build, optimizer = CASES[name]
    model = build()
    return model, optimizer(model)


def step(model: nn.Module, optimizer: Any) -> None:
    plain = isinstance(model, nn.Sequential) and isinstance(model[0], nn.Linear)
    small = isinstance(model, nn.Sequential) and len(model) == 6
    shape = () if plain else (2, 6, 6)
    dtype = next(model.parameters()).dtype
    inputs, targets = data(8, *shape, dtype=dtype) if plain or small else batch_for(model)
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tile_memory(optimizer: Any) -> Iterator[Tensor]:
    """Blocks beside tiles, and the memory of their products."""
    plan = optimizer._planner._known.plan.directions
    for together in plan._tiled:
        yield from (*together.shared.tiles.g, *together.shared.tiles.a)
        yield from together.room()._work.memory


@EACH
def test_the_report_before_the_first_step_is_that_after_it(name: str) -> None:
    model, optimizer = built(name)
    before = optimizer.memory()
    step(model, optimizer)
    assert optimizer.memory() == before
    assert before.factors > 0
    assert before.inverses > 0


@EACH
def test_it_is_what_the_tensors_take(name: str) -> None:
    model, optimizer = built(name)
    before: MemoryReport = optimizer.memory()
    step(model, optimizer)
    stacks = optimizer.engine.stacks
    pairs = [factor for stack in stacks for factor in (stack.a, stack.g)]
    assert before.factors == bytes_of(t for f in pairs for t in (f.blocks, f.traces))
    assert before.inverses == bytes_of(t for stack in stacks for t in stack.inverses.tensors)
    averages = {id(s.rows.averages): s.rows.averages.shares for s in stacks}
    assert before.buffers == bytes_of([*averages.values(), *tile_memory(optimizer)])
    state = [t for own in optimizer.state.values() for t in own.values() if t is not None]
    assert before.state == bytes_of(state)
    assert before.held == before.factors + before.inverses + before.buffers + before.state


def test_it_allocates_nothing() -> None:
    """Nobody has 90 GB for it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(106_000, 4))
    report = Preconditioner(model, split=None).memory()
    assert report.held > 80e9
    assert [layer.blocks for layer in report] == [(5, 4), (106_001, 4)]


def test_a_preconditioner_has_no_state_of_its_own() -> None:
    model = mlp()
    preconditioner = Preconditioner(model)
    before = preconditioner.memory()
    assert before.state == 0
    step(model, preconditioner)
    assert preconditioner.memory() == before


def test_a_measured_split_is_known_after_the_first_statistics() -> None:
    model = mlp()
    thor = THOR(model, norm_control="graft", split="per_layer")
    with pytest.raises(InvalidOptionError, match=r"split='per_layer'.*to know memory"):
        thor.memory()
    step(model, thor)
    assert thor.memory().factors > 0


def test_it_prints_a_table() -> None:
    lines = str(THOR(mlp(), norm_control="graft").memory()).splitlines()
    head = ("layer", "matrix", "blocks of A, G", "factors", "inverses", "buffers", "refresh")
    assert [word for word in head if word not in lines[0]] == []
    assert lines[2].split()[:4] == ["0", "6x6", "6,", "6"]
    assert lines[-1].startswith("in all ")


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1500, "1.5 kB"), (2.5e7, "25 MB"), (2e10, "20 GB")]
)
def test_bytes_are_readable(size: float, words: str) -> None:
    assert readable(size) == words
