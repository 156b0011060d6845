"""Weight norm: V trains by the curvature of the weight that it makes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations

from foreign import Conv1D
from helpers import EXACT_THOR, a_scaler, mean_half_square
from peek import factors_of
from torch_thor import EKFAC, THOR, GaussNewton, Statistics, Treatment, derivatives
from torch_thor.layers.weight_norm import direction_of


def normed(layer: nn.Module, *, old: bool = False, dim: Any = 0) -> Any:
    if not old:
        return parametrizations.weight_norm(layer, dim=dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, dim=dim)


def layers() -> dict[str, nn.Module]:
    return {
        "linear": nn.Linear(6, 4),
        "convolution": nn.Conv1d(6, 4, 3, padding=1, dilation=1),
        "grouped": nn.Conv1d(6, 4, 3, groups=2),
        "transposed": nn.ConvTranspose1d(6, 4, 3),
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("kind", list(layers()))
def test_factors_are_those_of_the_layer_without_it(
    kind: str, *, old: bool, dim: int | None
) -> None:
    """g is what makes W other than V."""
    layer: Any = layers()[kind].double()
    under = normed(copy.deepcopy(layer), old=old, dim=dim)
    with torch.no_grad():
        lengths = next(p for n, p in under.named_parameters() if n.endswith(("_g", "original0")))
        scales = torch.linspace(0.5, 2.0, lengths.numel()).view_as(lengths)
        lengths *= scales
        layer.weight *= scales
    inputs = torch.randn(5, 6, 7) if kind != "linear" else torch.randn(5, 7, 6)
    found = []
    for one in (layer, under):
        optimizer = THOR(one, split=None, **EXACT_THOR)
        one(inputs.double()).square().mean().backward()
        optimizer.step()
        found.append(factors_of(optimizer))
    torch.testing.assert_close(found[1], found[0])


def test_the_direction_is_the_gradient_of_v_between_inverses() -> None:
    layer = normed(nn.Linear(5, 3, bias=False).double())
    direction = direction_of(layer)
    optimizer = THOR(
        layer, lr=0.1, momentum=0.0, weight_decay=0.0, power=1.0, split=None, damping=0.1,
        **EXACT_THOR,
    )  # fmt: skip
    mean_half_square(layer(torch.randn(9, 5).double()), torch.randn(9, 3).double()).backward()
    before, gradient = direction.detach().clone(), direction.grad.clone()
    optimizer.step()
    ((A, G),) = factors_of(optimizer)

    def inverse(factor: Tensor) -> Tensor:
        mean = factor.trace() / len(factor)
        return torch.linalg.inv(factor + 0.1 * mean * torch.eye(len(factor)).double())

    wanted = before - 0.1 * inverse(G) @ gradient @ inverse(A)
    torch.testing.assert_close(direction.detach(), wanted)


@pytest.mark.parametrize("kind", [THOR, EKFAC])
def test_v_is_preconditioned_and_lengths_and_heads_are_not(kind: Any) -> None:
    net = nn.Sequential(normed(nn.Linear(4, 6)), nn.Tanh(), normed(nn.Linear(6, 3), old=True))
    optimizer = kind(net)
    for _ in range(3):
        optimizer.zero_grad()
        mean_half_square(net(torch.randn(8, 4)), torch.randn(8, 3)).backward()
        optimizer.step()
    entries = {one.name: one for one in optimizer.coverage()}
    first = entries["0.parametrizations.weight.original1"]
    assert first.treatment is Treatment.PRECONDITIONED
    assert "of the weight that it makes" in first.reason
    assert entries["0.parametrizations.weight.original0"].treatment is Treatment.BASE
    last = entries["2.weight_v"]
    is_head = kind is THOR
    assert last.treatment is (Treatment.BASE if is_head else Treatment.PRECONDITIONED)
    assert not is_head or last.reason == "output layer"


def test_one_that_is_shared_excluded_or_frozen_is_told_as_any_other() -> None:
    def reason(net: nn.Module, **options: Any) -> str:
        optimizer = THOR(net, norm_control="graft", **options)
        report = {one.name: one.reason for one in optimizer.coverage()}
        return report["0.parametrizations.weight.original1"]

    net: Any = nn.Sequential(normed(nn.Linear(4, 4)), nn.Linear(4, 4))
    assert reason(net, exclude="0") == "excluded"
    net[1].weight = net[0].parametrizations.weight.original1
    assert reason(net).startswith("shared")
    net[0].requires_grad_(requires_grad=False)
    assert "requires_grad" in reason(net)


def test_other_parametrizations_and_chains_of_them_have_no_curvature() -> None:
    both = parametrizations.spectral_norm(normed(nn.Linear(4, 4)))
    for layer in (both, parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 4)):
        assert direction_of(layer) is None


def test_it_may_be_taken_off_while_training() -> None:
    net = nn.Sequential(normed(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    optimizer = THOR(net, interval=1)
    inputs, targets = torch.randn(8, 4), torch.randn(8, 3)

    def step() -> None:
        optimizer.zero_grad()
        mean_half_square(net(inputs), targets).backward()
        optimizer.step()

    step()
    remove_parametrizations(net[0], "weight")
    optimizer.add_param_group({"params": [net[0].weight]})
    step()
    step()
    report = {one.name: one for one in optimizer.coverage()}
    assert report["0.weight"].reason == "Kronecker factors"


def test_an_unscaled_gradient_is_not_taken_for_one_of_a_scaler(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """g / ‖V‖ = 2⁻⁵ makes V's gradient as much smaller than the rows say."""
    net = nn.Sequential(normed(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        direction_of(net[0]).mul_(32)
    optimizer = THOR(net)
    mean_half_square(net(torch.randn(8, 4)), torch.randn(8, 3)).backward()
    optimizer.step()
    assert not [one for one in recwarn if "GradScaler" in str(one.message)]


def test_a_scaler_that_is_named_leaves_the_factors_alone() -> None:
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        net = nn.Sequential(normed(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
        optimizer, scaler = THOR(net, split=None, **EXACT_THOR), a_scaler(scale)
        loss = mean_half_square(net(torch.randn(8, 4)), torch.randn(8, 3))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        found.append(factors_of(optimizer, "0"))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(("curvature", "share"), [("exact", 1e-2), ("kronecker", 0.3)])
def test_gauss_newton_takes_such_a_network(curvature: Any, share: float) -> None:
    """The exact kernel is compared with autograd's at the first steps."""
    torch.manual_seed(0)
    net = nn.Sequential(normed(nn.Linear(1, 8)), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = GaussNewton(net, curvature=curvature)
    points = torch.linspace(0, 1, 12).double().unsqueeze(1)

    def closure() -> Tensor:
        u = derivatives(net, points)
        return u.value - torch.sin(3 * points)

    losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert losses[-1] < share * losses[0]


def test_a_run_goes_on_bit_for_bit() -> None:
    def built() -> tuple[Any, THOR]:
        torch.manual_seed(0)
        net = nn.Sequential(normed(nn.Conv1d(2, 6, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
        return net, THOR(net, interval=2)

    def train(net: nn.Module, optimizer: THOR, steps: range) -> None:
        for step in steps:
            draws = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            inputs = torch.randn(8, 2, 8, generator=draws)
            mean_half_square(net(inputs), torch.randn(8, 3, generator=draws)).backward()
            optimizer.step()

    net, optimizer = built()
    train(net, optimizer, range(3))
    again, other = built()
    again.load_state_dict(copy.deepcopy(net.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin: Any = copy.deepcopy(net)
    assert direction_of(twin[0]) is not direction_of(net[0])
    train(net, optimizer, range(3, 7))
    train(again, other, range(3, 7))
    for one, two in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_knows_which_dimension_counts_samples(*, batch_first: bool) -> None:
    layer: Any = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first).double()
    under = copy.deepcopy(layer)
    normed(under.linear1)
    inputs = torch.randn(3, 7, 8).double()
    reduced = Statistics(decay=0.0, rows=None, weight_sharing="reduce")
    found = []
    for one in (layer, under):
        optimizer = THOR(one, split=None, **{**EXACT_THOR, "statistics": reduced})
        one(inputs).square().mean().backward()
        optimizer.step()
        found.append(factors_of(optimizer, "linear1"))
    torch.testing.assert_close(found[1], found[0])


def test_layers_that_keep_weights_otherwise_and_gains() -> None:
    """GPT-2's Conv1D has its weight transposed; of a vector one length is left."""
    layers: list[nn.Module] = [nn.Linear(4, 6), normed(Conv1D(6, 6)), nn.Linear(6, 3)]
    net = nn.Sequential(*layers, normed(nn.LayerNorm(3), dim=None), normed(nn.Embedding(4, 3)))
    optimizer = THOR(net, norm_control="graft", include=(nn.LayerNorm,))
    mean_half_square(net[:4](torch.randn(8, 4)), torch.randn(8, 3)).backward()
    optimizer.step()
    reasons = {one.name: one.reason for one in optimizer.coverage()}
    assert "Kronecker" in reasons["1.parametrizations.weight.original1"]
    assert reasons["3.parametrizations.weight.original1"] == "weight norm of a vector"
    assert "nn.Embedding" in reasons["4.parametrizations.weight.original1"]


@pytest.mark.parametrize("old", [False, True])
def test_a_direction_that_is_made_of_others_has_no_curvature(*, old: bool) -> None:
    layer = normed(nn.Linear(4, 6), old=old)
    owner, name = (layer, "weight_v") if old else (layer.parametrizations.weight, "original1")
    prune.l1_unstructured(owner, name, 3)  # a row of zeros would have no direction
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = THOR(net)
    curved = [one.name for one in optimizer.coverage() if one.treatment is Treatment.PRECONDITIONED]
    assert curved == ["2.weight", "4.weight"]
    before = [p.detach().clone() for p in layer.parameters()]
    mean_half_square(net(torch.randn(8, 4)), torch.randn(8, 3)).backward()
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(layer.parameters(), before, strict=True))
