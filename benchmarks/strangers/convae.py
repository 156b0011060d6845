"""A convolutional autoencoder with batch norm, of crops of two photographs."""

import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional

from thor_bench import Task

CODE = 64


def down(before, after):
    return [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]


def up(before, after):
    return [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]


def model():
    return nn.Sequential(
        *down(3, 24), *down(24, 48), *down(48, 96), nn.Flatten(), nn.Linear(96 * 16, CODE),
        nn.Linear(CODE, 96 * 16), nn.ReLU(), nn.Unflatten(1, (96, 4, 4)),
        *up(96, 48), *up(48, 24), nn.ConvTranspose2d(24, 3, 4, 2, 1), nn.Sigmoid(),
    )  # fmt: skip


def loss(model, batch):
    return functional.mse_loss(model(batch), batch)


def crops(images, step):
    """Crops of 32 × 32."""
    cut = images.unfold(2, 32, step).unfold(3, 32, step)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


def task():
    photos = torch.stack([torch.tensor(one) for one in load_sample_images().images])
    photos = photos.permute(0, 3, 1, 2).float() / 255
    return Task(
        model=model,
        loss=loss,
        train=crops(photos[..., :512], 12),  # 2,720
        test=crops(photos[..., 512:], 16),
        batch_size=64,
        epochs=8,
    )
