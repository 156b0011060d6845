"""One photograph as a function: from a place, by Fourier features, to its colour."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.squares import Squares
from thor_bench.tasks.task import Metric, Task

_FREQUENCIES, _SCALE, _WIDTH = 128, 10.0, 256


class FourierMLP(nn.Module):
    """Sines and cosines of random frequencies, then an MLP with ReLU (Tancik et al. 2020)."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", _SCALE * torch.randn(2, _FREQUENCIES))
        self.net = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(),
            nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 3),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps places ``[N, 2]`` in 0 … 1 to colours ``[N, 3]``."""
        angles = 2 * math.pi * inputs @ self.frequencies
        outputs: Tensor = self.net(torch.cat([angles.sin(), angles.cos()], dim=1))
        return outputs


def load(_source: DataSource) -> TrainTest[TensorSplit]:
    """Takes scikit-learn's photograph of a flower.

    Pixels of even rows and columns are for training, those of odd ones for the test.
    """
    from sklearn.datasets import load_sample_image  # noqa: PLC0415 - takes a second

    image = torch.tensor(load_sample_image("flower.jpg")).float() / 255
    rows, columns = image.shape[:2]
    places = torch.cartesian_prod(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns))
    grid = places.view(rows, columns, 2)
    parts = (slice(0, None, 2), slice(1, None, 2))
    return TrainTest(
        *(
            TensorSplit(grid[part, part].reshape(-1, 2), image[part, part].reshape(-1, 3))
            for part in parts
        )
    )


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error of each pixel: ``[N]``."""
    return (outputs - targets).square().mean(dim=1)


def signal_to_noise(error: float) -> float:
    """Returns the peak signal-to-noise ratio of a mean squared error, in dB."""
    return -10 * math.log10(max(error, 1e-12))


def residuals(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Returns what half the mean squares of is the mean squared error of a batch: ``[N, 3]``."""
    places, colours = batch
    wrong: Tensor = math.sqrt(2 / 3) * (model(places) - colours)
    return wrong


_COLOURS = Pairs(functional.mse_loss, squared_error)

IMAGE_FIT = Task(
    name="image-fit",
    description="scikit-learn's flower.jpg, MLP of 3 × 256 on Fourier features",
    input_summary="68 + 68 thousand pixels, shipped with scikit-learn",
    load=load,
    model=FourierMLP,
    loss=Squares(residuals),
    metric=Metric(
        name="signal-to-noise ratio",
        unit="dB",
        higher_is_better=True,
        score=_COLOURS.judge,
        of_mean=signal_to_noise,
        low=0.0,
        high=100.0,
        digits=2,
    ),
    target=29.5,
    epochs=15,
    batch_size=1024,
)
