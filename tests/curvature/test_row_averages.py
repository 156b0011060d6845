"""Rows made alike: against the oracle's rule, one matrix at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import EXACT_THOR, draws
from oracle import EvenedRows, with_rms
from torch_thor import THOR, InvalidOptionError, NormControl
from torch_thor.curvature import row_averages
from torch_thor.curvature.row_averages import RowAverages, RowEvening

ROWS = 3


def averages(layers: int = 2, matrices: int = 1) -> RowAverages:
    return over([(layers, matrices, ROWS)])


def over(shapes: list[tuple[int, int, int]]) -> RowAverages:
    return RowAverages(shapes, dtype=torch.float64, device=torch.get_default_device())


def even(ours: RowAverages, slots: list[int], directions: Tensor, decay: float) -> None:
    evened(ours.evening(((0, tuple(slots)),)), [directions], decay)


def evened(plan: RowEvening, directions: list[Tensor], decay: float) -> Tensor:
    """Evens the rows of each stack's directions in place; returns the lengths of the layers."""
    for one, lengths in zip(directions, plan.lengths, strict=True):
        lengths.copy_(one.norm(dim=3))
    found = plan.fold(decay)
    for one, factors in zip(directions, plan.factors(torch.ones_like(found)), strict=True):
        one.mul_(factors)
    return found


def directions(layers: int = 2, matrices: int = 1) -> Tensor:
    spread = torch.tensor([1.0, 0.1, 10.0]).view(-1, 1)
    return torch.randn(layers, matrices, ROWS, 4, dtype=torch.float64) * spread


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_rows_are_divided_by_their_running_share(decay: float) -> None:
    """Two layers, the second of which sits one step out: averages are each layer's own."""
    ours = averages()
    rules = [EvenedRows(decay, ROWS) for _ in range(2)]
    for slots in ([0, 1], [0], [0, 1]):
        found = directions(len(slots))
        expected = [
            rules[slot](one[0]).unsqueeze(0) for slot, one in zip(slots, found, strict=True)
        ]
        even(ours, slots, found, decay)
        torch.testing.assert_close(found, torch.stack(expected))


def test_matrices_of_one_layer_share_its_length() -> None:
    """Two groups of a convolution are six rows of one layer."""
    found = directions(1, matrices=2)
    expected = EvenedRows(0.9, 2 * ROWS)(found.reshape(2 * ROWS, -1))
    even(averages(1, matrices=2), [0], found, 0.9)
    torch.testing.assert_close(found.reshape(2 * ROWS, -1), expected)


@given(scale=st.floats(1e-6, 1e6), decay=st.floats(0.0, 0.99))
def test_the_length_of_a_direction_does_not_enter(scale: float, decay: float) -> None:
    generator = draws(0)
    first = torch.randn(1, 1, ROWS, 4, dtype=torch.float64, generator=generator)
    second = torch.randn(1, 1, ROWS, 4, dtype=torch.float64, generator=generator)
    found = []
    for factor in (1.0, scale):
        ours, last = averages(1), second.clone()
        even(ours, [0], first * factor, decay)
        even(ours, [0], last, decay)
        found.append(last)
    torch.testing.assert_close(found[0], found[1])


def test_zeros_stay_and_change_no_later_direction() -> None:
    ours, zeros = averages(1), torch.zeros(1, 1, ROWS, 4, dtype=torch.float64)
    even(ours, [0], directions(1), 0.5)
    before = ours.shares / ours.shares.sum()
    even(ours, [0], zeros, 0.5)
    assert torch.equal(zeros, torch.zeros_like(zeros))
    torch.testing.assert_close(ours.shares / ours.shares.sum(), before)


def test_stacks_that_lie_together_keep_apart() -> None:
    """Lengths are those of evened rows, stack by stack; a stack alone goes on where it was."""
    ours = over([(2, 1, ROWS), (1, 2, ROWS)])
    alone = [averages(), averages(1, matrices=2)]
    for chosen in (((0, (0, 1)), (1, (0,))), ((1, (0,)),), ((0, (1,)), (1, (0,)))):
        found = [directions(len(slots), matrices=stack + 1) for stack, slots in chosen]
        expected = [one.clone() for one in found]
        for (stack, slots), one in zip(chosen, expected, strict=True):
            even(alone[stack], list(slots), one, 0.9)
        lengths = evened(ours.evening(chosen), found, 0.9)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(lengths, torch.cat([x.flatten(1).norm(dim=1) for x in found]))


def test_devices_without_segments_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = directions(2)
    expected = found.clone()
    even(averages(), [0, 1], expected, 0.9)
    monkeypatch.setattr(row_averages, "_SEGMENTED", ())
    even(averages(), [0, 1], found, 0.9)
    torch.testing.assert_close(found, expected)


def test_evenings_do_not_pile_up() -> None:
    ours = over([(100, 1, ROWS)])
    for slot in range(100):
        found = directions(1)
        even(ours, [slot], found, 0.9)
    torch.testing.assert_close(ours.shares.view(100, ROWS).mean(1), torch.ones(100).double())
    assert len(ours._evenings) <= 64


def test_a_row_that_wakes_up_takes_no_wild_step() -> None:
    """A dead unit's average is 0: its first step is bounded by 1 / √(1 - ρ)."""
    ours = averages(1)
    for _ in range(50):
        asleep = directions(1)
        asleep[..., 0, :] = 0.0
        even(ours, [0], asleep, 0.95)
    awake = directions(1)
    usual = float(awake.square().mean())
    even(ours, [0], awake, 0.95)
    assert float(awake[0, 0, 0].square().mean()) <= usual / 0.05 * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["rms", "spectral"])
def test_steps_keep_the_length_that_was_asked_for(kind: str) -> None:
    module = nn.Linear(5, ROWS, bias=False)
    before = module.weight.detach().clone()
    control = NormControl(kind, limit=0.3, row_decay=0.0)  # type: ignore[arg-type]
    thor = THOR(
        module,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        **{**EXACT_THOR, "norm_control": control},
    )
    module(torch.randn(8, 5)).square().mean().backward()
    thor.step()
    step = (module.weight - before).detach()
    torch.testing.assert_close(step, with_rms(step, 0.1 * 0.3 / 5**0.5))
    # Without a memory every row has the same length.
    torch.testing.assert_close(step.norm(dim=1), step.norm(dim=1).mean().expand(ROWS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.9, 0.95])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_checkpoint_holds_the_averages(steps: int, decay: float, dtype: torch.dtype) -> None:
    def training() -> tuple[nn.Module, THOR]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(dtype)
        return module, THOR(module, norm_control=NormControl("rms", row_decay=decay), lr=0.05)

    def train(module: nn.Module, thor: THOR, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(8, 4, generator=draws(step))
            thor.zero_grad()
            module(inputs.to(dtype)).square().mean().backward()
            thor.step()

    module, thor = training()
    train(module, thor, range(steps))
    again, later = training()
    again.load_state_dict(module.state_dict())
    later.load_state_dict(copy.deepcopy(thor.state_dict()))
    for one, optimizer in ((module, thor), (again, later)):
        train(one, optimizer, range(steps, steps + 12))
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_without_averages_still_loads() -> None:
    module = nn.Linear(4, 2)
    thor = THOR(module, norm_control="graft", lr=0.1)
    module(torch.randn(8, 4)).square().mean().backward()
    thor.step()
    saved = thor.state_dict()
    for layer in saved["curvature"]["layers"].values():
        del layer["rows"]
    THOR(module, norm_control="graft", lr=0.1).load_state_dict(saved)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "rms", "row_decay": 1.0},
        {"kind": "kl_clip", "row_decay": 0.9},
        {"kind": "graft", "row_decay": 0.9, "per": "rows"},
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError, match="row_decay"):
        NormControl(**arguments)  # type: ignore[arg-type]
