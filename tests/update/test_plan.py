"""The route of a step is found again where groups, gradients or curvature have changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_thor import THOR
from torch_thor.capture.coverage import Treatment


def model() -> nn.Sequential:
    """A network whose every parameter has a gradient far above rounding.

    A batch norm would take away the bias before it, whose gradient is then only rounding noise.
    """
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def step(module: nn.Module, thor: THOR) -> None:
    thor.zero_grad()
    module(torch.randn(8, 4)).square().mean().backward()
    thor.step()


def moved(module: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_the_same_route_serves_steps_that_are_alike() -> None:
    module = model()
    thor = THOR(module, norm_control="graft", lr=0.1)
    for _ in range(2):
        step(module, thor)
    known = thor._planner._known
    step(module, thor)
    assert thor._planner._known is known


def test_groups_that_loading_a_state_replaced_are_followed() -> None:
    """The optimizer has stepped before: its plans knew the groups of then."""
    module = model()
    thor = THOR(module, norm_control="graft", lr=0.1)
    step(module, thor)
    thor.load_state_dict(thor.state_dict())
    thor.param_groups[0]["lr"] = 0.0
    before = values(module)
    step(module, thor)
    assert not any(moved(module, before))


@pytest.mark.parametrize("missing", range(4))
def test_parameters_without_a_gradient_stay_and_move_again_with_one(missing: int) -> None:
    module = model()
    thor = THOR(module, norm_control="graft", lr=0.1, weight_decay=0.0)
    step(module, thor)
    for expected in (False, True):
        before = values(module)
        thor.zero_grad()
        module(torch.randn(8, 4)).square().mean().backward()
        if not expected:
            list(module.parameters())[missing].grad = None
        thor.step()
        assert moved(module, before) == [expected or n != missing for n in range(6)]


def test_a_group_that_is_added_is_followed() -> None:
    module = model()
    first, *others = module.parameters()
    thor = THOR(module, [first], norm_control="graft", lr=0.1)
    for _ in range(3):
        before = values(module)
        step(module, thor)
        assert moved(module, before) == [True, False, False, False, False, False]
    assert [layer.name for layer in thor.engine.layers] == ["0"]
    kept = thor.engine.stacks[0].a.blocks.clone()
    thor.add_param_group({"params": others, "lr": 0.2})
    assert [layer.name for layer in thor.engine.layers] == ["0", "2"]
    torch.testing.assert_close(thor.engine.stacks[0].a.blocks, kept, rtol=0, atol=0)
    before = values(module)
    step(module, thor)
    assert all(moved(module, before))


def test_what_is_in_no_group_is_left_to_whoever_trains_it() -> None:
    """No curvature is kept for it, and the report says so."""
    module = model()
    thor = THOR(module, module[0].parameters(), norm_control="graft", lr=0.1)
    found = {entry.name: entry.treatment for entry in thor.coverage()}
    assert [name for name, how in found.items() if how is Treatment.PRECONDITIONED] == [
        "0.weight",
        "0.bias",
    ]
    assert found["2.weight"] is Treatment.FROZEN
    other = torch.optim.SGD(module[2].parameters(), lr=0.1)
    for _ in range(3):
        before = values(module)
        step(module, thor)
        other.step()
        other.zero_grad()
        assert moved(module, before) == [True, True, False, False, True, True]
    assert len(thor.engine.stacks) == 1
