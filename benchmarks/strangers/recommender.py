"""Ratings by embeddings and an MLP: 2,000 users, 1,000 items, rank 6 and noise, from a seed."""

import math

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task

USERS, ITEMS, RANK, RATINGS, NOISE = 2000, 1000, 6, 120_000, 0.4


class Recommender(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, width), nn.Embedding(ITEMS, width)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.05)
        self.mlp = nn.Sequential(
            nn.Linear(2 * width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, pairs):
        both = torch.cat([self.users(pairs[:, 0]), self.items(pairs[:, 1])], 1)
        return 3.5 + self.mlp(both).squeeze(1)


def loss(model, batch):
    pairs, ratings = batch
    return functional.mse_loss(model(pairs), ratings)


def ratings():
    """Pairs of a user and an item, items by Zipf's law, and ratings in 1 … 5."""
    draws = torch.Generator().manual_seed(0)
    users = torch.randn(USERS, RANK, generator=draws)
    items = torch.randn(ITEMS, RANK, generator=draws)
    popular = 1 / torch.arange(10, ITEMS + 10)
    item = torch.multinomial(popular, RATINGS, replacement=True, generator=draws)
    user = torch.randint(USERS, (RATINGS,), generator=draws)
    told = 3.5 + (users[user] * items[item]).sum(1) / math.sqrt(RANK)
    told = told + 0.3 * items[item, 0] + NOISE * torch.randn(RATINGS, generator=draws)
    return torch.stack([user, item], 1), told.clamp(1, 5)


def task():
    pairs, told = ratings()
    border = 100_000
    return Task(
        model=Recommender,
        loss=loss,
        train=(pairs[:border], told[:border]),
        test=lambda: [(pairs[border:], told[border:])],
        metric=Metric(name="RMSE", score=loss, of_mean=math.sqrt, higher_is_better=False),
        batch_size=512,
        epochs=2.5,
    )
