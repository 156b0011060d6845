"""Muon's rule for matrices without curvature: which they are, how they step, what is saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import assert_same_weights, mlp
from torch_thor import THOR, Base

MUON = Base("adamw", lr_scale=0.15, weight_decay=0.0, outputs=True, matrices="muon")


class Experts(nn.Module):
    """Parameters of a module of one's own."""

    def __init__(self, heads: int = 3) -> None:
        """Draws them."""
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(heads, 6, 8) / 3)
        self.down_proj = nn.Parameter(torch.randn(heads, 8, 6) / 3)
        self.weight = nn.Parameter(torch.randn(6, 6) / 3)
        self.pos_weight = nn.Parameter(torch.randn(5, 6))
        self.latents = nn.Parameter(torch.randn(5, 6))
        self.scale = nn.Parameter(torch.ones(6, 1))
        self.twist = nn.Parameter(torch.randn(6, 6, dtype=torch.cfloat) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Uses them all."""
        x = x @ self.weight.T + self.pos_weight + self.latents
        x = torch.einsum("bti,kij,kjo->bto", x, self.w1, self.down_proj)
        return (x.to(torch.cfloat) @ self.twist).real * self.scale[:, 0]


class Scaled(nn.Linear):
    """A layer that has no adapter, because a subclass may do anything."""


class Net(nn.Module):
    """Tokens [N, 5] → logits [N, 5, 7]."""

    def __init__(self, recurrent: str = "LSTM") -> None:
        """Makes an embedding, a recurrent layer, experts, a subclass's layer and a head."""
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.recurrent = getattr(nn, recurrent)(6, 6, batch_first=True)
        self.experts, self.inner, self.norm = Experts(), Scaled(6, 6), nn.LayerNorm((5, 6))
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        """One after the other."""
        x = self.inner(self.experts(self.recurrent(self.table(tokens))[0]))
        logits: Tensor = self.head(self.hidden(self.norm(x)).tanh())
        return logits


def step(net: nn.Module, optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randint(7, (4, 5), generator=generator)).square().mean().backward()
    optimizer.step()


def by_muon(optimizer: THOR) -> set[str]:
    return {one.name for one in optimizer.coverage() if "'muon'" in one.reason}


MATRICES = {"experts.w1", "experts.down_proj", "experts.weight", "inner.weight"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_types_and_names_say_which_parameters_are_matrices(kind: str) -> None:
    net = Net(kind)
    optimizer = THOR(net, lr=0.01, base=MUON)
    step(net, optimizer, 0)
    recurrent = {"recurrent.weight_ih_l0", "recurrent.weight_hh_l0"}
    assert by_muon(optimizer) == MATRICES | recurrent
    for name, parameter in net.named_parameters():
        adam = name in MATRICES | recurrent or name.startswith("hidden")
        assert ("exp_avg" in optimizer.state[parameter]) != adam
    assert set(optimizer.factor_norms()) == {"hidden"}


def test_nobody_asks_for_it_by_default() -> None:
    assert by_muon(THOR(Net(), base="adamw")) == set()


def test_the_user_excludes_it_by_name() -> None:
    optimizer = THOR(Net(), base=MUON, exclude=("recurrent", "experts"))
    assert by_muon(optimizer) == {"inner.weight"}


def test_shared_weights_and_a_head_of_an_own_type_are_none() -> None:
    net = Net()
    net.head = Scaled(6, 7)
    net.inner.weight = net.hidden.weight
    optimizer = THOR(net, base=MUON)
    step(net, optimizer, 0)
    assert by_muon(optimizer) == MATRICES - {"inner.weight"} | {
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
    }
    reasons = {one.name: one.reason for one in optimizer.coverage()}
    assert reasons["head.weight"] == "output layer"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_matrix_steps_with_singular_values_alike(momentum: float) -> None:
    net = Net()
    optimizer = THOR(net, lr=0.5, momentum=momentum, weight_decay=0.1, base=MUON)
    for turn in range(2):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        step(net, optimizer, turn)
    for name, shape in {
        "recurrent.weight_hh_l0": (1, 24, 6),
        "experts.w1": (3, 6, 8),
        "inner.weight": (1, 6, 6),
    }.items():
        moved = net.get_parameter(name) - (1 - 0.5 * 0.1) * before[name]
        values = torch.linalg.svdvals(moved.detach().view(shape)) / 0.5
        assert torch.allclose(
            values.square().sum(1), torch.full((shape[0],), shape[1] * 1.0), rtol=1e-4
        )
        alike = values > 0.45 * values.amax(1, keepdim=True)
        assert (2 * alike.sum(1) >= values.shape[1]).all()  # but for those of almost nothing


def test_a_direction_of_zeros_and_frozen_parameters_stay() -> None:
    net = nn.Sequential(nn.GRU(6, 6))
    optimizer = THOR(net, lr=0.5, weight_decay=0.0, base=MUON)
    before = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_same_weights(net, before)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_resumed_run_goes_on_bit_for_bit(steps: int) -> None:
    net = Net()
    optimizer = THOR(net, lr=0.01, base=MUON, interval=2)
    for turn in range(steps):
        step(net, optimizer, turn)
    twin = copy.deepcopy(net)
    other = THOR(twin, lr=0.01, base=MUON, interval=2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for turn in range(steps, steps + 3):
        step(net, optimizer, turn)
        step(twin, other, turn)
    assert_same_weights(net, twin)


@pytest.mark.parametrize("split", [72, "auto"])
def test_a_head_behind_matrices_alone_is_an_output_layer(split: Any) -> None:
    net = nn.Sequential(nn.Embedding(7, 6), Scaled(6, 6), nn.Tanh(), nn.Linear(6, 7))
    optimizer = THOR(net, base=MUON, split=split)
    for turn in range(2):
        step(net, optimizer, turn)
    assert by_muon(optimizer) == {"1.weight"}
    assert optimizer.factor_norms() == {}
    assert "exp_avg" in optimizer.state[net.get_parameter("3.weight")]


def test_memory_counts_what_the_steps_take() -> None:
    net = Net()
    optimizer = THOR(net, lr=0.01, base=MUON, split=72)
    step(net, optimizer, 0)
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    assert optimizer.memory().state == sum(t.numel() * t.element_size() for t in tensors)
    fresh = THOR(mlp(), base=Base("adamw", matrices="muon"))
    fresh.allocate()
    assert fresh.memory().state > 0


class Lookup(nn.Embedding):
    """A table by another name."""


class Gains(nn.LayerNorm):
    """A norm over two dimensions."""


class Heads(nn.Module):
    """Gains of heads, which are called a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(2, 4))


def test_tables_and_gains_are_no_matrices() -> None:
    net = nn.Sequential(Lookup(7, 4), Gains((3, 4)), Heads())
    optimizer = THOR(net, base=MUON)
    assert not optimizer.engine.followed.matrices


def normed(kind: str) -> nn.Module:
    layer: nn.Module = nn.Conv1d(6, 6, 3, padding=1)
    if kind == "spectral norm":
        return nn.utils.parametrizations.spectral_norm(layer)
    return nn.utils.spectral_norm(layer)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("spectral norm", "parametrizations.weight.original"),
        ("old spectral norm", "weight_orig"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_weight_is_made_of_steps_as_the_weight(
    kind: str, weight: str, *, wrapped: bool
) -> None:
    net = nn.Sequential(normed(kind), nn.Tanh(), nn.Conv1d(6, 2, 1))
    model = nn.DataParallel(net) if wrapped else net
    optimizer = THOR(model, lr=0.5, momentum=0.0, weight_decay=0.0, base=MUON)
    parameter = net.get_parameter(f"0.{weight}")
    before = parameter.detach().clone()
    net(torch.randn(4, 6, 5)).square().mean().backward()
    optimizer.step()
    assert by_muon(optimizer) == {f"0.{weight}"}
    values = torch.linalg.svdvals((parameter - before).detach().flatten(1)) / 0.5
    assert values.square().sum().item() == pytest.approx(6, rel=1e-4)
    assert (values > 0.45 * values.max()).sum() >= 3


def test_recurrent_weights_and_tables_are_what_they_are_when_parametrized() -> None:
    net = Net("GRU")
    for module, name in ((net.recurrent, "weight_hh_l0"), (net.table, "weight")):
        nn.utils.parametrizations.spectral_norm(module, name)
    optimizer = THOR(net, lr=0.01, base=MUON)
    made = "recurrent.parametrizations.weight_hh_l0.original"
    assert by_muon(optimizer) == MATRICES | {"recurrent.weight_ih_l0", made}


def test_a_parametrized_head_is_an_output_layer_and_one_that_is_excluded_is_left_alone() -> None:
    spectral_norm = nn.utils.parametrizations.spectral_norm
    net = nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.Tanh(), spectral_norm(nn.Linear(6, 3)))
    optimizer = THOR(net, lr=0.01, base=MUON)
    net(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    assert by_muon(optimizer) == {"0.parametrizations.weight.original"}
    reasons = {one.name: one.reason for one in optimizer.coverage()}
    assert reasons["2.parametrizations.weight.original"] == "output layer"
    assert by_muon(THOR(net, base=MUON, exclude="0")) == {"2.parametrizations.weight.original"}


def test_output_layers_without_curvature_are_known_after_a_resume() -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6) / 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 6), Map()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0])

    def stepped(net: nn.Module, optimizer: THOR, turns: range) -> None:
        for turn in turns:
            torch.manual_seed(turn)
            optimizer.zero_grad()
            net(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()

    net = Own()
    optimizer = THOR(net)
    stepped(net, optimizer, range(3))
    assert optimizer.engine.state_dict()["outputs"] == {"head": True}
    twin = copy.deepcopy(net)
    heir = THOR(twin)
    heir.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(net, optimizer, range(3, 6))
    stepped(twin, heir, range(3, 6))
    assert_same_weights(net, twin)
