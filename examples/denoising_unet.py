"""A U-Net that tells the noise, as diffusion models do: ``python examples/denoising_unet.py``.

The images are scikit-learn's digits, and the noise grows by the cosine schedule.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import THOR

WIDTH, TIMES = 32, 100


class Convolution(nn.Module):
    """A convolution that hears the time, with group norm and SiLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1)
        self.norm, self.time = nn.GroupNorm(4, after), nn.Linear(WIDTH, after)

    def forward(self, images: Tensor, time: Tensor) -> Tensor:
        """Maps ``[N, before, H, W]`` and ``[N, WIDTH]`` to ``[N, after, H, W]``."""
        hidden = self.norm(self.convolution(images)) + self.time(time)[..., None, None]
        return functional.silu(hidden)


class UNet(nn.Module):
    """Two resolutions joined by a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.inward, self.middle = Convolution(1, WIDTH), Convolution(2 * WIDTH, 2 * WIDTH)
        self.down = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, stride=2)
        self.outward, self.head = Convolution(2 * WIDTH, WIDTH), nn.Conv2d(WIDTH, 1, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        """Maps noisy images ``[N, 1, H, W]`` and their times ``[N]`` to the noise."""
        waves = times[:, None] / TIMES * math.pi * torch.arange(1, WIDTH + 1)
        time = self.time(waves.cos())
        fine = self.inward(images, time)
        coarse = self.up(self.middle(self.down(fine), time))
        return self.head(self.outward(torch.cat([fine, coarse], dim=1), time))


def kept(times: Tensor) -> Tensor:
    """Returns the share of the image's variance that a time leaves, ``[N, 1, 1, 1]``."""
    return ((times + 1) / (TIMES + 1) * math.pi / 2).cos().square()[:, None, None, None]


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.002")
    parser.add_argument("--steps", type=int, default=400)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    model = UNet()
    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.002)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=said.steps)

    losses = []
    for step in range(said.steps):
        clean = images[torch.randint(len(images), (64,))]
        times, noise = torch.randint(TIMES, (64,)), torch.randn_like(clean)
        share = kept(times)
        told = model(share.sqrt() * clean + (1 - share).sqrt() * noise, times)
        loss = functional.mse_loss(told, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"step {step + 1:4}  loss {sum(losses[-50:]) / 50:.4f}")
    return losses


if __name__ == "__main__":
    main()
