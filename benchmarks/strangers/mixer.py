"""An MLP-Mixer on digits, patches of 2 × 2, shifted by up to a pixel as augmentation."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task


def mlp(size, hidden):
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


class Block(nn.Module):
    def __init__(self, tokens=16, width=128):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens, self.channels = mlp(tokens, 64), mlp(width, 256)

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class Mixer(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)), nn.LayerNorm(width))
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(self.blocks(self.patches(images).flatten(2).mT).mean(1))


def loss(model, batch):
    images, labels = batch
    shifts = torch.randint(-1, 2, (2,)).tolist()
    return functional.cross_entropy(model(images.roll(shifts, (2, 3))), labels)


def accuracy(model, batch):
    outputs, labels = model(batch[0]), batch[1]
    right = 100.0 * (outputs.argmax(1) == labels).float().mean()
    return functional.cross_entropy(outputs, labels), right


def task():
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = (images.float() / 8 - 1).view(-1, 1, 8, 8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = ((images[part], labels[part]) for part in (order[:1200], order[1200:]))
    metric = Metric(name="accuracy", unit="%", score=accuracy, higher_is_better=True)
    return Task(
        model=Mixer, loss=loss, train=train, test=test, metric=metric, batch_size=64, epochs=16
    )
