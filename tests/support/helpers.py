"""Small models, losses and loops that several test files share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from torch_thor import THOR, Refresh, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Every row counts, nothing is remembered, everything is refreshed at every step: what the
# formulas describe without the approximations that make them cheap.
EXACT: dict[str, Any] = {
    "statistics": Statistics(decay=0.0, rows=None),
    "refresh": Refresh(stagger=False),
    "factor_interval": 1,
    "norm_control": None,
    "trace_rule": None,
}
# The same as keywords of THOR, whose factors and inverses share one interval.
EXACT_THOR: dict[str, Any] = {
    **{key: value for key, value in EXACT.items() if key != "factor_interval"},
    "interval": 1,
}
# Everything is refreshed at every step.
AT_EVERY_STEP: dict[str, Any] = {"interval": 1, "refresh": Refresh(stagger=False)}


def grafted(model: nn.Module, *groups: Any, **options: Any) -> THOR:
    """THOR with steps as long as SGD's: all layers have curvature, biases too."""
    return THOR(model, *groups, norm_control="graft", **options)


def draws(seed: int) -> torch.Generator:
    """A seeded source of draws on the default device, which torch's own does not follow."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def a_scaler(init_scale: float, growth_interval: int = 2000) -> torch.amp.GradScaler:
    """A GradScaler for the default device."""
    kind = torch.get_default_device().type
    return torch.amp.GradScaler(kind, init_scale=init_scale, growth_interval=growth_interval)


def function_modes() -> list[object]:
    """The function modes in force, but for the default device's, which is one too."""
    modes = _get_current_function_mode_stack()
    return [mode for mode in modes if not isinstance(mode, DeviceContext)]


def default_fused() -> bool | None:
    """What the base rule "adamw" asks of torch's kernels where nothing is said."""
    return True if torch.get_default_device().type in ("cpu", "cuda") else None


def default_fused_sgd() -> bool | None:
    """The same of the base rule "sgd" in plain steps: a card's leave themselves out."""
    return True if torch.get_default_device().type == "cuda" else None


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½‖y − t‖², summed over everything: the loss of one sample, or the sum over several."""
    return 0.5 * ((outputs - targets) ** 2).sum()


def mean_half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the samples' losses."""
    return half_square(outputs, targets) / len(outputs)


class Scale(nn.Module):
    """A factor per feature: parameters that no curvature is known for."""

    def __init__(self, features: int) -> None:
        """Start near one, all different."""
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.9, 1.1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor


def mlp(width: int = 6, *, bias: bool = True) -> nn.Sequential:
    """5 → width → 3 with tanh between."""
    return nn.Sequential(nn.Linear(5, width, bias=bias), nn.Tanh(), nn.Linear(width, 3, bias=bias))


def convnet() -> nn.Sequential:
    """Two convolutions (the second grouped) and a head, for images [2, 6, 6]."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def data(
    samples: int = 8, *shape: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Inputs [samples, *shape] (default: for ``mlp``) and targets [samples, 3]."""
    inputs = torch.randn(samples, *(shape or (5,)), dtype=dtype)
    return inputs, torch.randn(samples, 3, dtype=dtype)


def train(
    model: nn.Module,
    optimizer: Any,
    batches: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = mean_half_square,
) -> list[float]:
    """One step per batch; the losses before each step."""
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), f"{name} differs by {(ours - theirs).abs().max():.3g}"


def gradient_of(parameter: object) -> Tensor:
    """The gradient of a parameter that has one."""
    assert isinstance(parameter, Tensor)
    assert parameter.grad is not None
    return parameter.grad


def gradients(model: nn.Module) -> list[Tensor]:
    """Copies of those of all parameters, each of which has one."""
    return [gradient_of(parameter).clone() for parameter in model.parameters()]


def gradient_matrices(layer: nn.Module) -> Iterator[Tensor]:
    """The gradient of a layer as [out/groups, in (+1)], one per group, bias in the last column."""
    assert isinstance(layer.weight, Tensor)
    assert layer.weight.grad is not None
    matrix = layer.weight.grad.flatten(1)
    if isinstance(layer.bias, Tensor) and layer.bias.grad is not None:
        matrix = torch.cat([matrix, layer.bias.grad[:, None]], dim=1)
    yield from matrix.chunk(int(getattr(layer, "groups", 1)))
