"""RealNVP: the density of two neighbouring pixels of a photograph, six colours, in nats."""

import math

import torch
from sklearn.datasets import load_sample_image
from torch import nn

from thor_bench import Task

SIZE, COUPLINGS, WIDTH = 6, 8, 96


class Coupling(nn.Module):
    def __init__(self, swapped):
        super().__init__()
        self.swapped = swapped
        self.net = nn.Sequential(
            nn.Linear(SIZE // 2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, SIZE),
        )  # fmt: skip

    def forward(self, x):
        kept, moved = x.chunk(2, 1)[:: -1 if self.swapped else 1]
        scale, shift = self.net(kept).chunk(2, 1)
        scale = scale.tanh()
        moved = moved * scale.exp() + shift
        return torch.cat([moved, kept] if self.swapped else [kept, moved], 1), scale.sum(1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.couplings = nn.ModuleList([Coupling(n % 2) for n in range(COUPLINGS)])

    def forward(self, x):
        """Returns the logarithm of each sample's density."""
        total = torch.zeros(len(x))
        for coupling in self.couplings:
            x, volume = coupling(x)
            total = total + volume
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def loss(model, batch):
    return -model(batch).mean()


def task():
    draws = torch.Generator().manual_seed(0)
    photo = torch.tensor(load_sample_image("flower.jpg")).float()
    pairs = torch.cat([photo[:, :-1], photo[:, 1:]], 2).flatten(0, 1)
    pairs = pairs[torch.randperm(len(pairs), generator=draws)[:60_000]]
    pairs = (pairs + torch.rand(pairs.shape, generator=draws)) / 256
    # Colours alternate, so that each half of a coupling sees both pixels.
    pairs = ((pairs - pairs.mean(0)) / pairs.std(0))[:, [0, 4, 2, 3, 1, 5]]
    return Task(
        model=Flow, loss=loss, train=pairs[:50_000], test=lambda: [pairs[50_000:]],
        batch_size=256, epochs=2,
    )  # fmt: skip
