"""A SIREN of a sound: chords of plucked strings, 16,000 samples, every second one to be told."""

import math

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Task

WIDTH, OMEGA = 128, 30.0


class Sine(nn.Module):
    def __init__(self, before, omega, bound):
        super().__init__()
        self.linear, self.omega = nn.Linear(before, WIDTH), omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


def model():
    bound = math.sqrt(6 / WIDTH) / OMEGA
    head = nn.Linear(WIDTH, 1)
    nn.init.uniform_(head.weight, -bound, bound)
    hidden = [Sine(WIDTH, OMEGA, bound) for _ in range(3)]
    return nn.Sequential(Sine(1, 600.0, 1.0), *hidden, head)


def loss(model, batch):
    times, heights = batch
    return functional.mse_loss(model(times), heights)


def sound(count):
    """One second: eight notes, each of five harmonics that fade."""
    draws = torch.Generator().manual_seed(0)
    times, heights = torch.linspace(-1, 1, count), torch.zeros(count)
    for _ in range(8):
        start, pitch = 1.6 * torch.rand(2, generator=draws) - torch.tensor([1.0, -0.4])
        since = (times - start).clamp_min(0)
        for harmonic in range(1, 6):
            phase = 2 * math.pi * torch.rand((), generator=draws)
            wave = torch.sin(2 * math.pi * 60 * pitch * harmonic * since + phase)
            heights += (times > start) * wave * torch.exp(-3 * harmonic * since) / harmonic
    return times[:, None], (heights / heights.std())[:, None]


def task():
    times, heights = sound(16_000)
    return Task(
        model=model,
        loss=loss,
        train=(times[::2], heights[::2]),
        test=lambda: [(times[1::2], heights[1::2])],
        batch_size=1000,
        epochs=50,
    )
