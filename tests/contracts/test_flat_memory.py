"""Promise: 200 steps leave no hook, gradient, activation, mode or file handle behind."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor, nn

from helpers import function_modes, mean_half_square
from models import Transformer, autoencoder, batch_for, included
from torch_thor import EKFAC, THOR, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 200


def tensors_alive() -> tuple[int, int]:
    gc.collect()
    # Plain tensors only: a compiled test before this one leaves symbolic ones.
    alive = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    return len(alive), sum(one.untyped_storage().nbytes() for one in alive)


def hooks_of(model: nn.Module) -> int:
    found = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )
    return found + sum(len(p._backward_hooks or ()) for p in model.parameters())


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("build", [Transformer, autoencoder])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (THOR, {"interval": 3}),
        (THOR, {"interval": 3, "statistics": Statistics(fisher="mc")}),
        (EKFAC, {"factor_interval": 3, "inverse_interval": 3}),
    ],
    ids=["thor", "mc", "ekfac"],
)
@pytest.mark.usefixtures("own_objects")
def test_nothing_grows_over_200_steps(
    build: Callable[[], nn.Module], kind: Any, options: dict[str, Any]
) -> None:
    """Case 4, 29: tensors, bytes, hooks and file handles are those of step 50."""
    model = build()
    optimizer = kind(model, lr=0.01, include=included(model), **options)
    inputs, targets = batch_for(model)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        outputs = model(inputs)
        if kind is THOR:
            optimizer.sample_fisher(outputs, "normal")
        loss = mean_half_square(outputs, targets)
        loss.backward()
        optimizer.step()
        if step % 7 == 0:
            model(inputs)  # a forward without backward, in training mode
        if step % 50 == 49:
            optimizer.zero_grad(set_to_none=True)
            del outputs, loss
            assert function_modes() == []
            seen.append((*tensors_alive(), hooks_of(model), handles()))
    assert len(set(seen)) == 1, seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count handles")
def test_python_memory_is_flat() -> None:
    """Case 4: no list, dict or closure grows either."""
    model = Transformer()
    optimizer = THOR(model, norm_control="graft", lr=0.01, interval=2, include=included(model))
    inputs, targets = batch_for(model)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            optimizer.step()

    tracemalloc.start()
    steps(100)  # caches of row plans are full then
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    steps(60)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 20_000
