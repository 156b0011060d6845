"""A GRU that reads digits pixel by pixel: 64 steps of one number, 1,200 + 597 images."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, pixels):
        return self.head(self.gru(pixels)[0][:, -1])


def loss(model, batch):
    pixels, labels = batch
    return functional.cross_entropy(model(pixels), labels)


def accuracy(model, batch):
    pixels, labels = batch
    outputs = model(pixels)
    right = 100.0 * (outputs.argmax(1) == labels).float().mean()
    return functional.cross_entropy(outputs, labels), right


def task():
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    pixels = (pixels.float() / 8 - 1).unsqueeze(2)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return Task(
        model=Reader,
        loss=loss,
        train=(pixels[train], labels[train]),
        test=(pixels[test], labels[test]),
        metric=Metric(name="accuracy", unit="%", score=accuracy, higher_is_better=True),
        batch_size=48,
        epochs=13,
    )
