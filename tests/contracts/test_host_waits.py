"""Promise: a refresh waits for the device a few times, not once or more for every layer."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from calls import Calls, calls_of
from helpers import AT_EVERY_STEP, data, mean_half_square
from models import resnet20
from torch_thor import EKFAC, KFAC, THOR, Base, NormControl, TraceRule
from torch_thor.curvature import block_batch
from torch_thor.linalg import foreach

if TYPE_CHECKING:
    from collections.abc import Callable

# On a device: index tensors made of lists are sent there, and masks are counted before they pick.
WAITING = {"index", "index_put_", "nonzero", "_local_scalar_dense", "masked_select"}
KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "thor": lambda model: THOR(model, norm_control="graft", **AT_EVERY_STEP),
    "kl_clip": lambda model: THOR(model, norm_control=NormControl("kl_clip"), **AT_EVERY_STEP),
    "kfac": lambda model: KFAC(model, factor_interval=1, inverse_interval=1),
    "ekfac": lambda model: EKFAC(model, factor_interval=1, inverse_interval=1),
}


def after_a_backward(kind: str, layers: int) -> Any:
    """An optimizer whose second step, a refresh of all layers, comes next."""
    parts = [part for _ in range(layers) for part in (nn.Linear(5, 5), nn.Tanh())]
    model = nn.Sequential(*parts, nn.Linear(5, 3))
    optimizer, (inputs, targets) = KINDS[kind](model), data()
    for turn in range(2):
        optimizer.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        if not turn:
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_no_list_and_no_mask_picks_layers(kind: str) -> None:
    """The same calls for few layers and for many; most of a refresh's waits were such."""
    found = []
    for layers in (1, 6):
        optimizer = after_a_backward(kind, layers)
        with Calls() as waits:
            optimizer.step()
        found.append({name: waits.found[name] for name in WAITING})
    assert found[0] == found[1]
    assert not found[1]["index"]
    assert not found[1]["nonzero"]


@pytest.mark.parametrize("kind", KINDS)
def test_more_layers_are_not_more_waits_for_a_card(kind: str, device: torch.device) -> None:
    """By torch's own count of synchronizations."""
    if device.type != "cuda":
        pytest.skip("torch counts waits for a card alone")
    found = []
    for layers in (1, 6):
        optimizer = after_a_backward(kind, layers)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("synchroniz" in str(one.message) for one in said))
    assert found[1] - found[0] < 5, found  # not one for each of the five layers more


@pytest.mark.cpu  # a device counts its own calls
@pytest.mark.parametrize(("rule", "most"), [(None, 150), (TraceRule(0.0, 0.0), 175)])
def test_a_refresh_of_all_layers_is_a_few_calls(
    rule: TraceRule | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the way of a GPU, whose calls cost most: the host waits once, or not at all there."""
    monkeypatch.setattr(foreach, "_ASYNCHRONOUS", {"cpu"})
    monkeypatch.setitem(block_batch._CALLS, "cpu", block_batch._MOST_CALLS)
    model = resnet20()
    optimizer = THOR(
        model, lr=0.1, norm_control="graft", trace_rule=rule, **AT_EVERY_STEP | {"base": Base()}
    )
    for _ in range(4):
        optimizer.zero_grad()
        inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        with Calls() as calls:
            optimizer.step()
    assert len(optimizer.last_decisions) == 22
    found = calls_of(calls)
    assert sum(found.values()) <= most, found
    assert found["_local_scalar_dense"] <= 1
