"""Promise: a module that is called several times counts every call; shared weights still train."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from helpers import EXACT, gradient_matrices, half_square, mean_half_square, weights
from oracle import direction, factors, observe
from torch_thor import THOR, Damping, Preconditioner, Treatment


class Repeated(nn.Module):
    """``fc(tanh(fc(x)))``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.fc(x)))


class Tied(nn.Module):
    """A language model's embedding and head with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


def test_both_calls_of_a_module_are_in_its_statistics() -> None:
    """Case 4."""
    model = Repeated().double()
    inputs, targets = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    seen = observe(model, "fc", inputs, targets, half_square)[0]
    preconditioner = Preconditioner(
        model, damping=Damping(0.1, "both"), split=None, power=1.0, **EXACT
    )
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    expected = direction(seen.mean_gradient, *factors(seen), damping=0.1)
    torch.testing.assert_close(next(gradient_matrices(model.fc)), expected)


@pytest.mark.usefixtures("own_objects")
def test_memory_stays_flat_over_many_steps() -> None:
    """Case 4: no call of an earlier step is kept, refreshed or not."""
    model = Repeated()
    optimizer = THOR(model, norm_control="graft", lr=0.01)
    inputs, targets = torch.randn(6, 3), torch.randn(6, 3)
    alive = []
    for step in range(60):
        optimizer.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        optimizer.step()
        if step % 20 == 19:
            gc.collect()
            alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert alive[0] == alive[1] == alive[2]


def test_tied_weights_train_once_and_are_reported() -> None:
    """Case 14."""
    model = Tied()
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    report = {entry.name: entry for entry in optimizer.coverage()}
    assert report["embedding.weight"].treatment is Treatment.BASE
    assert report["embedding.weight"].reason
    assert report["body.weight"].treatment is Treatment.PRECONDITIONED
    tokens, targets = torch.randint(7, (6, 5)), torch.randint(7, (6, 5))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert model.head.weight is model.embedding.weight
    assert losses[-1] < losses[0]


class LowRank(nn.Module):
    """A frozen Linear with a trained low-rank update, as LoRA wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("kind", ["LoRA", "LSTM", "GRU", "weight_norm"])
def test_unusual_layers_train_and_are_reported(kind: str) -> None:
    """Case 14."""
    layers: dict[str, nn.Module] = {
        "LoRA": LowRank(nn.Linear(4, 4)),
        "LSTM": nn.LSTM(4, 4, batch_first=True),
        "GRU": nn.GRU(4, 4, batch_first=True),
        "weight_norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    }
    layer, head = layers[kind], nn.Linear(4, 3)
    model = nn.ModuleList([layer, head])
    optimizer = THOR(model, norm_control="graft", lr=0.1)
    before = weights(model)
    for _ in range(2):
        optimizer.zero_grad()
        hidden = layer(torch.randn(6, 5, 4))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        mean_half_square(head(hidden.mean(1)), torch.randn(6, 3)).backward()
        optimizer.step()
    report = {entry.name: entry for entry in optimizer.coverage()}
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(parameter, old) != parameter.requires_grad, name
        assert report[name].reason
