"""SimCLR on digits: shifts, noise and erased patches; judged by nearest neighbours' labels."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from thor_bench import Metric, Task

TEMPERATURE = 0.2


def model():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Flatten(),
        nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 64)),
    )  # fmt: skip


def augmented(images):
    """Each image shifted by up to one pixel, a patch of 3 × 3 erased, with noise."""
    count = len(images)
    wide = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    windows = wide.unfold(2, 8, 1).unfold(3, 8, 1)[:, 0]
    y, x = torch.randint(3, (2, count))
    moved = windows[torch.arange(count), y, x]
    top, left = torch.randint(6, (2, count, 1, 1))
    rows, columns = torch.arange(8)[:, None], torch.arange(8)
    erased = (rows - top).clamp(0, 2) + top == rows
    erased = erased & ((columns - left).clamp(0, 2) + left == columns)
    return (moved.masked_fill(erased, -1.0) + 0.2 * torch.randn_like(moved)).unsqueeze(1)


def loss(model, batch):
    images, _ = batch
    codes = functional.normalize(model(torch.cat([augmented(images), augmented(images)])))
    alike = codes @ codes.T / TEMPERATURE
    alike = alike.masked_fill(torch.eye(len(codes), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(alike, torch.arange(len(codes)).roll(len(images)))


def task():
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = (images.float() / 8 - 1).view(-1, 1, 8, 8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = ((images[part], labels[part]) for part in (order[:1200], order[1200:]))

    def neighbours(model, batch):  # of what stands below the projection
        bank, codes = (functional.normalize(model[:-1](one)) for one in (train[0], batch[0]))
        votes = train[1][(codes @ bank.T).topk(5).indices].mode(1).values
        return 100.0 * (votes == batch[1]).float()

    metric = Metric(name="neighbours", unit="%", score=neighbours, higher_is_better=True)
    one_batch = lambda: [test]  # noqa: E731 - the bank is embedded once
    return Task(
        model=model, loss=loss, train=train, test=one_batch, metric=metric, batch_size=128,
        epochs=40,
    )  # fmt: skip
