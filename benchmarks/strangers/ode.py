"""A neural ODE of predators and prey: an MLP in Runge-Kutta's steps, judged along whole orbits."""

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Task

STEPS, SPAN = 12, 0.25


def runge_kutta(field, state):
    first = field(state)
    second = field(state + SPAN / 2 * first)
    third = field(state + SPAN / 2 * second)
    fourth = field(state + SPAN * third)
    return state + SPAN / 6 * (first + 2 * second + 2 * third + fourth)


class Orbit(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        )

    def forward(self, state):
        states = []
        for _ in range(STEPS):
            state = runge_kutta(self.field, state)
            states.append(state)
        return torch.stack(states, 1)


def predators_and_prey(state):
    prey, predators = state.unbind(-1)
    return torch.stack([prey * (1 - predators), predators * (prey - 1)], -1)


def loss(model, orbits):
    return functional.mse_loss(model(orbits[:, 0]), orbits[:, 1:])


def task():
    draws = torch.Generator().manual_seed(0)
    state = 0.4 + 1.6 * torch.rand(1000, 2, generator=draws)
    orbits = [state]
    for _ in range(STEPS):
        state = runge_kutta(predators_and_prey, state)
        orbits.append(state)
    orbits = torch.stack(orbits, 1)
    orbits[:800, 1:] += 0.02 * torch.randn(800, STEPS, 2, generator=draws)  # measured with noise
    return Task(
        model=Orbit, loss=loss, train=orbits[:800], test=lambda: [orbits[800:]],
        batch_size=50, epochs=25,
    )  # fmt: skip
