"""A temporal convolution with weight norm, as its authors': the sum of two marked of 80 numbers."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from thor_bench import Task

LENGTH, WIDTH, KERNEL = 80, 32, 6


class Block(nn.Module):
    def __init__(self, before, dilation):
        super().__init__()
        self.reach = (KERNEL - 1) * dilation
        self.first, self.second = (
            weight_norm(nn.Conv1d(size, WIDTH, KERNEL, dilation=dilation))
            for size in (before, WIDTH)
        )
        self.skip = nn.Conv1d(before, WIDTH, 1) if before != WIDTH else nn.Identity()

    def forward(self, x):
        h = self.first(functional.pad(x, (self.reach, 0))).relu()
        h = self.second(functional.pad(h, (self.reach, 0))).relu()
        return (h + self.skip(x)).relu()


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(2, 1), *(Block(WIDTH, 2**n) for n in range(1, 4)))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.head(self.blocks(x)[:, :, -1]).squeeze(1)


def loss(model, batch):
    sequences, sums = batch
    return functional.mse_loss(model(sequences), sums)


def task():
    draws = torch.Generator().manual_seed(0)
    numbers = torch.rand(11_000, LENGTH, generator=draws)
    places = torch.rand(11_000, LENGTH, generator=draws).topk(2).indices
    marks = torch.zeros(11_000, LENGTH).scatter_(1, places, 1.0)
    sequences, sums = torch.stack([numbers, marks], 1), (numbers * marks).sum(1)
    return Task(
        model=TCN,
        loss=loss,
        train=(sequences[:10_000], sums[:10_000]),
        test=lambda: [(sequences[10_000:], sums[10_000:])],
        batch_size=32,
        epochs=1.28,
    )
