"""A small BERT on Python's help topics, by words: 15 % are hidden and to be told, in nats."""

import re
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task

CONTEXT, WIDTH, WORDS, UNKNOWN, MASK = 48, 96, 1000, 0, 1


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.1, activation="gelu", batch_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2)
        self.before = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WORDS))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, words):
        x = self.blocks(self.norm(self.words(words) + self.places.weight))
        return functional.linear(self.before(x), self.words.weight, self.bias)


def told(model, words, draws):
    """Returns the loss at hidden words; the head is tied to the embedding."""
    chance = torch.rand(words.shape, generator=draws)
    hidden = chance < 0.15
    other = torch.randint(WORDS, words.shape, generator=draws)
    shown = words.masked_fill(chance < 0.12, MASK)
    shown = torch.where((chance >= 0.12) & (chance < 0.135), other, shown)
    return functional.cross_entropy(model(shown)[hidden], words[hidden])


def loss(model, words):
    return told(model, words, None)


def score(model, words):
    return told(model, words, torch.Generator().manual_seed(0))


def task():
    text = re.findall(r"\w+|[^\w\s]", "\n".join(topics.values()))
    common = [word for word, _ in Counter(text).most_common(WORDS - 2)]
    numbers = {word: number for number, word in enumerate(common, 2)}
    codes = torch.tensor([numbers.get(word, UNKNOWN) for word in text])
    windows = codes[: len(codes) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    train, test = windows[:-200], windows[-200:]
    return Task(
        model=Bert, loss=loss, train=train, test=test, batch_size=24, epochs=4,
        metric=Metric(name="loss", score=score, unit="nats", higher_is_better=False),
    )  # fmt: skip
