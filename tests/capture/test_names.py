"""Names of wrapped models are those of the model itself."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from helpers import mlp
from torch_thor import THOR, Treatment
from torch_thor.capture.names import own_names, unwrapped


def compiled(model: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(model))


class Net(nn.Module):
    """A model that itself has a child of a wrapper's name."""

    def __init__(self) -> None:
        super().__init__()
        self.module: nn.Module = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.module(x))


BARE = {"": "", "module": "module", "module.0": "module.0", "module.1": "module.1", "head": "head"}


def test_a_bare_model_keeps_its_names() -> None:
    assert own_names(Net()) == BARE
    assert own_names(nn.Linear(2, 2)) == {"": ""}


@pytest.mark.parametrize(
    ("wrap", "segment"),
    [
        (torch.compile, "_orig_mod"),
        (nn.DataParallel, "module"),
        (AveragedModel, "module"),
        (checkpoint_wrapper, "_checkpoint_wrapped_module"),
    ],
    ids=["compile", "DataParallel", "AveragedModel", "checkpoint"],
)
def test_a_wrapped_model_has_the_names_of_the_bare_one(wrap: Any, segment: str) -> None:
    found = own_names(wrap(Net()))
    assert found.pop("") == ""
    assert found.pop(segment) == ""
    assert found == {f"{segment}.{name}": own for name, own in BARE.items() if name}


def test_wrappers_of_parts_and_of_wrappers() -> None:
    model = Net()
    model.module = compiled(checkpoint_wrapper(model.module))
    names = own_names(compiled(nn.DataParallel(model)))
    prefix = "_orig_mod.module"
    assert names[f"{prefix}.module._orig_mod._checkpoint_wrapped_module.0"] == "module.0"
    assert names[f"{prefix}.head"] == "head"
    assert set(names.values()) == set(BARE.values())


def test_a_module_at_two_places_has_both_names() -> None:
    model = Net()
    model.again = model.head
    assert own_names(model) == BARE | {"again": "again"}


@pytest.mark.parametrize(
    ("saved", "expected", "own"),
    [
        (["_orig_mod.0", "_orig_mod.2"], ["0", "2"], ["0", "2"]),
        (["_orig_mod"], [""], [""]),
        (["body._orig_mod.0", "head"], ["body.0", "head"], ["body.0", "head"]),
        (["a._checkpoint_wrapped_module.b"], ["a.b"], ["a.b"]),
        (["module.0", "module.2"], ["0", "2"], ["0", "2"]),
        (["module._orig_mod.0"], ["0"], ["0"]),
        (["module"], [""], [""]),
        (["module.0", "module.2"], ["module.0", "module.2"], ["module.0", "module.2"]),
        (["module.0", "head"], ["0", "head"], ["module.0", "head"]),
        (["0", "2"], ["0", "2"], ["0", "2"]),
        ([], ["0"], []),
    ],
)
def test_saved_names(saved: list[str], expected: list[str], own: list[str]) -> None:
    assert unwrapped(saved, expected) == dict(zip(saved, own, strict=True))


@pytest.mark.parametrize("name", ["module", "_orig_mod.module", "module.0", "*module"])
def test_selectors_take_both_names(name: str) -> None:
    optimizer = THOR(compiled(Net()), norm_control="graft", exclude=name)
    treated = {e.name.split(".")[-2]: e.treatment for e in optimizer.coverage()}
    assert treated == {"0": Treatment.BASE, "head": Treatment.PRECONDITIONED}


def test_an_optimizer_of_a_compiled_model_excludes_by_the_models_own_names() -> None:
    optimizer = THOR(compiled(mlp()), norm_control="graft", exclude=("0",))
    assert len(optimizer.engine.layers) == 1
