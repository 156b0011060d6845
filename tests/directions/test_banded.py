"""Large layers, some rows at a time: against the float64 oracle, over several steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from helpers import EXACT, EXACT_THOR, gradient_matrices, gradient_of, half_square, mean_half_square
from oracle import EvenedRows, direction, factors, grafted, observe
from torch_thor import EKFAC, THOR, Damping, NormControl, Preconditioner, Refresh, Update
from torch_thor.directions import banded
from torch_thor.directions.controls import Control, control_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_thor.curvature.surface import HasCurvature

LR, DECAY, DAMPING = 0.05, 0.1, Damping(0.3, "relative")
LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "linear": lambda: (nn.Linear(7, 10), (12, 7)),
    "linear without bias": lambda: (nn.Linear(8, 9, bias=False), (12, 8)),
    "convolution": lambda: (nn.Conv2d(2, 7, 2), (3, 2, 4, 4)),
    "channels last": lambda: (
        nn.Conv2d(2, 7, 2).to(memory_format=torch.channels_last),
        (3, 2, 4, 4),
    ),
}


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer counts as large, and none fits into one band."""
    monkeypatch.setattr(banded, "SMALL_LAYER", 1)
    monkeypatch.setattr(banded, "BAND", 16)


def bands_of(trainer: HasCurvature) -> int:
    return sum(
        len(large.bands)
        for large in banded.banded_layers(trainer.engine.stacks, lambda _: True, Control())
    )


def with_length(found: Tensor, source: Tensor, control: NormControl | str | None) -> Tensor:
    if control is None:
        return found
    if control == "graft":
        return grafted(found, source)
    assert isinstance(control, NormControl)
    return found * (control.limit * math.sqrt(found.shape[0]) / float(found.norm()))


class ByHand:
    """THOR's update on one matrix, written out."""

    def __init__(self, order: Update, momentum: float) -> None:
        self.order, self.momentum, self.buffer = order, momentum, torch.zeros(())

    def after_momentum(self, vector: Tensor) -> Tensor:
        self.buffer = self.momentum * self.buffer + vector
        return vector + self.momentum * self.buffer if self.order.nesterov else self.buffer

    def step(self, weight: Tensor, gradient: Tensor, find: Callable[[Tensor], Tensor]) -> Tensor:
        if self.order.momentum_first:
            return weight * (1 - LR * DECAY) - LR * find(self.after_momentum(gradient))
        if self.order.decoupled_decay:
            return weight * (1 - LR * DECAY) - LR * self.after_momentum(find(gradient))
        return weight - LR * self.after_momentum(find(gradient) + DECAY * weight)


@pytest.mark.cpu  # large layers are swept there alone
@pytest.mark.parametrize("split", [None, 4, 3])
@pytest.mark.parametrize("control", [None, "graft", NormControl("rms", 0.2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_directions(layer: str, control: Any, split: int | None) -> None:
    module, shape = LAYERS[layer]()
    module.double()
    inputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randn_like(module(inputs)).detach()
    [seen] = observe(module, "", inputs, targets, half_square)
    preconditioner = Preconditioner(
        module, **{**EXACT, "norm_control": control}, damping=DAMPING, split=split
    )
    mean_half_square(module(inputs), targets).backward()
    preconditioner.step()
    found = direction(
        seen.mean_gradient, *factors(seen), damping=0.3, mode="relative", power=0.5, split=split
    )
    expected = with_length(found, seen.mean_gradient, control)
    [rewritten] = gradient_matrices(module)
    torch.testing.assert_close(rewritten, expected, rtol=1e-8, atol=1e-10)
    assert bands_of(preconditioner) == (1 if split is None else math.ceil(len(found) / split))


@pytest.mark.cpu  # large layers are swept there alone
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("first", "decoupled"), [(True, False), (True, True), (False, False), (False, True)]
)
@pytest.mark.parametrize("layer", ["linear", "channels last"])
def test_steps(
    layer: str, momentum: float, *, nesterov: bool, first: bool, decoupled: bool
) -> None:
    module, shape = LAYERS[layer]()
    module.double()
    order = Update(nesterov=nesterov, momentum_first=first, decoupled_decay=decoupled)
    options = {**EXACT_THOR, "norm_control": "graft"}
    thor = THOR(
        module,
        lr=LR,
        momentum=momentum,
        weight_decay=DECAY,
        damping=DAMPING,
        split=4,
        update=order,
        **options,
    )
    weight = matrix(module)
    hand = ByHand(order, momentum)
    for _ in range(3):
        inputs = torch.randn(shape, dtype=torch.float64)
        targets = torch.randn_like(module(inputs)).detach()
        [seen] = observe(module, "", inputs, targets, half_square)
        A, G = factors(seen)

        def find(source: Tensor, A: Tensor = A, G: Tensor = G) -> Tensor:
            found = direction(source, A, G, damping=0.3, mode="relative", power=0.5, split=4)
            return grafted(found, source)

        weight = hand.step(weight, seen.mean_gradient, find)
        thor.zero_grad()
        mean_half_square(module(inputs), targets).backward()
        thor.step()
        torch.testing.assert_close(matrix(module), weight, rtol=1e-8, atol=1e-10)
    assert bands_of(thor) > 1


@pytest.mark.cpu  # large layers are swept there alone
@pytest.mark.parametrize("layer", ["linear", "channels last"])
def test_rows_are_evened(layer: str) -> None:
    module, shape = LAYERS[layer]()
    module.double()
    control = NormControl("graft", row_decay=0.7)
    thor = THOR(
        module,
        lr=LR,
        momentum=0.0,
        weight_decay=0.0,
        damping=DAMPING,
        split=4,
        **{**EXACT_THOR, "norm_control": control},
    )
    weight = matrix(module)
    even = EvenedRows(0.7, len(weight))
    for _ in range(3):
        inputs = torch.randn(shape, dtype=torch.float64)
        targets = torch.randn_like(module(inputs)).detach()
        [seen] = observe(module, "", inputs, targets, half_square)
        source = seen.mean_gradient
        found = direction(source, *factors(seen), damping=0.3, mode="relative", power=0.5, split=4)
        weight = weight - LR * grafted(even(found), source)
        thor.zero_grad()
        mean_half_square(module(inputs), targets).backward()
        thor.step()
        torch.testing.assert_close(matrix(module), weight, rtol=1e-8, atol=1e-10)
    assert bands_of(thor) > 1


def matrix(module: Any) -> Tensor:
    """Weight and bias as one matrix."""
    return torch.cat([module.weight.flatten(1), module.bias.unsqueeze(1)], 1).detach().clone()


@pytest.mark.cpu  # large layers are swept there alone
def test_a_bias_in_another_group_keeps_its_rates() -> None:
    module = nn.Linear(6, 8)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [module.weight]},
        {"params": [module.bias], "lr": 0.0},
    ]
    thor = THOR(module, groups, norm_control="graft", lr=0.1, weight_decay=0.1)
    module(torch.randn(12, 6)).square().mean().backward()
    thor.step()
    assert bands_of(thor) > 0
    assert not torch.equal(module.weight, before[0])
    assert torch.equal(module.bias, before[1])


def test_a_bias_that_is_nobodys_stays() -> None:
    module = nn.Linear(6, 8)
    before = module.bias.detach().clone()
    thor = THOR(module, [module.get_parameter("weight")], norm_control="graft", lr=0.1)
    module(torch.randn(12, 6)).square().mean().backward()
    thor.step()
    assert torch.equal(module.bias, before)


def test_half_precision_is_as_close_as_its_type() -> None:
    exact, half = nn.Linear(40, 30), nn.Linear(40, 30)
    half.load_state_dict(exact.state_dict())
    inputs = torch.randn(64, 40)
    for module, dtype in ((exact, None), (half, torch.bfloat16)):
        refresh = Refresh(stagger=False, inverse_dtype=dtype)
        thor = THOR(module, norm_control="graft", lr=0.1, split=8, refresh=refresh)
        module(inputs).square().mean().backward()
        thor.step()
    apart = (exact.weight - half.weight).detach()
    assert 0 < float(apart.norm()) < 0.02 * 0.1 * float(gradient_of(exact.weight).norm())


@pytest.mark.cpu  # large layers are swept there alone
@pytest.mark.parametrize(
    "control", [NormControl("kl_clip", 1e-3), NormControl("graft", per="rows")]
)
def test_lengths_of_more_or_less_than_a_layer_are_not_swept(control: NormControl) -> None:
    module = nn.Linear(6, 8)
    thor = THOR(module, lr=0.1, norm_control=control)
    module(torch.randn(12, 6)).square().mean().backward()
    thor.step()
    stacks = thor.engine.stacks
    assert banded.banded_layers(stacks, lambda _: True, control_of(control)) == []
    assert len(banded.banded_layers(stacks, lambda _: True, Control())) == 1
    assert banded.banded_layers(stacks, lambda _: False, Control()) == []


def test_ekfac_and_grouped_layers_are_not_swept() -> None:
    for module, shape in ((nn.Linear(6, 8), (12, 6)), (nn.Conv1d(4, 4, 2, groups=2), (3, 4, 5))):
        kind = EKFAC if isinstance(module, nn.Linear) else THOR
        optimizer = kind(module, lr=0.1)
        module(torch.randn(shape)).square().mean().backward()
        optimizer.step()
        assert bands_of(optimizer) == 0
