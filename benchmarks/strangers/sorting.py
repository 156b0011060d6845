"""A decoder that sorts ten digits, as minGPT's demo: whole sequences right, %."""

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task

LENGTH, SYMBOLS, WIDTH = 10, 10, 128
CONTEXT = 2 * LENGTH - 1


class Sorter(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, SYMBOLS, bias=False)
        self.apply(initialize)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask)

    def forward(self, symbols):
        x = self.symbols(symbols) + self.places.weight
        return self.head(self.blocks(x, mask=self.mask, is_causal=True))[:, LENGTH - 1 :]


def initialize(module):
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def outputs_and_targets(model, numbers):
    ordered = numbers.sort(1).values
    return model(torch.cat([numbers, ordered[:, :-1]], 1)), ordered


def loss(model, batch):
    outputs, targets = outputs_and_targets(model, batch)
    return functional.cross_entropy(outputs.mT, targets)


def right(model, batch):
    outputs, targets = outputs_and_targets(model, batch)
    whole = 100.0 * (outputs.argmax(2) == targets).all(1).float().mean()
    return functional.cross_entropy(outputs.mT, targets), whole


def task():
    numbers = torch.randint(SYMBOLS, (21_000, LENGTH), generator=torch.Generator().manual_seed(0))
    metric = Metric(name="sorted", unit="%", score=right, higher_is_better=True)
    return Task(
        model=Sorter, loss=loss, train=numbers[:20_000], test=numbers[20_000:], metric=metric,
        batch_size=48, epochs=0.72, loss_reduction="positions_mean",
    )  # fmt: skip
