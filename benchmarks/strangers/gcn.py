"""A graph convolution as Kipf's: digits and their eight nearest neighbours, 20 labels a class."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task

STEPS = 20  # of an epoch, all on the whole graph


def graph():
    features, labels = map(torch.tensor, load_digits(return_X_y=True))
    features = features.float() / 16
    near = torch.cdist(features, features).topk(9, largest=False).indices
    edges = torch.zeros(len(labels), len(labels)).scatter_(1, near, 1.0)
    edges = torch.maximum(edges, edges.T)
    degree = edges.sum(1).rsqrt()
    return features, degree[:, None] * edges * degree, labels


class GCN(nn.Module):
    def __init__(self, features, edges):
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("edges", edges)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self):
        hidden = self.edges @ self.first(self.drop(self.features))
        return self.edges @ self.second(self.drop(hidden.relu()))


def loss(model, batch):
    nodes, labels = batch
    return functional.cross_entropy(model()[nodes], labels)


def accuracy(model, batch):
    nodes, labels = batch
    outputs = model()[nodes]
    right = 100.0 * (outputs.argmax(1) == labels).float().mean()
    return functional.cross_entropy(outputs, labels), right


def task():
    features, edges, labels = graph()
    train = torch.cat([(labels == one).nonzero()[:20, 0] for one in range(10)])
    known = torch.isin(torch.arange(len(labels)), train)
    test = (~known).nonzero()[:, 0]
    return Task(
        model=lambda: GCN(features, edges),
        loss=loss,
        train=lambda: STEPS * [(train, labels[train])],
        test=lambda: [(test, labels[test])],
        steps_per_epoch=STEPS,
        epochs=15,
        metric=Metric(name="accuracy", unit="%", score=accuracy, higher_is_better=True),
    )
