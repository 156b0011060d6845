"""A denoising U-Net: from a noisy image of Fashion-MNIST and its share of noise to the noise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.records.config import DataSource
from thor_bench.tasks import fashion
from thor_bench.tasks.data import Batch, TrainTest, random_stream
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.task import Metric, Task

_TRAINED, _JUDGED = 9_600, 1_000  # images


@dataclass(frozen=True)
class NoisySplit:
    """Images in memory, with fresh noise in every epoch.

    Attributes:
        images: Pixels 0 … 1, ``[samples, 1, H, W]``.
    """

    images: Tensor

    test_batch: ClassVar[int] = 250

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def read(
        self, picks: Mapping[int, Tensor], *, part: slice, seed: tuple[int, int], pin: bool
    ) -> Iterator[Batch]:
        """Yields the noisy images with their share of noise, ``[N, 2, H, W]``, and the noise."""
        del pin  # for workers
        for number, samples in picks.items():
            stream = random_stream(*seed, number)
            share = torch.rand(len(samples), 1, 1, 1, generator=stream)[part]
            noise = torch.randn(len(samples), *self.images.shape[1:], generator=stream)[part]
            noisy = self.images[samples[part]] * (1 - share) + noise * share
            yield torch.cat([noisy, share.expand_as(noisy)], dim=1), noise


def load(source: DataSource) -> TrainTest[NoisySplit]:
    """Reads Fashion-MNIST.

    Raises:
        BenchError: Files are missing or broken.
    """
    (train, _), (test, _) = fashion.read(source)
    pixels = [
        images.unsqueeze(1).float().div_(255) for images in (train[:_TRAINED], test[:_JUDGED])
    ]
    return TrainTest(*map(NoisySplit, pixels))


def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns a 3×3 convolution with group norm and SiLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.GroupNorm(4, channels_out),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Two resolutions, joined by a skip connection (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inward = nn.Sequential(convolution(2, width), convolution(width, width))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Sequential(*(convolution(2 * width, 2 * width) for _ in range(2)))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.outward = convolution(2 * width, width)
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[N, 2, H, W]`` to ``[N, 1, H, W]``."""
        fine = self.inward(inputs)
        coarse = self.middle(self.down(fine))
        outputs: Tensor = self.head(self.outward(torch.cat([self.up(coarse), fine], dim=1)))
        return outputs


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error of each image: ``[N]``."""
    return (outputs - targets).square().flatten(1).mean(dim=1)


_NOISE = Pairs(functional.mse_loss, squared_error)

UNET = Task(
    name="unet",
    description="Fashion-MNIST with noise, U-Net 16/32 with group norm tells the noise",
    input_summary="9,600 + 1,000 images of 28×28 pixels, IDX files",
    load=load,
    model=UNet,
    loss=_NOISE.loss,
    metric=Metric(
        name="squared error",
        unit="",
        higher_is_better=False,
        score=_NOISE.judge,
        low=0.0,
        high=1.0,
        digits=4,
    ),
    target=0.105,
    epochs=2,
    batch_size=64,
)
