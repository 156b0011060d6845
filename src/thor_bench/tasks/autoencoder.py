"""A deep autoencoder of Fashion-MNIST, the classic test of second-order methods."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.records.config import DataSource
from thor_bench.tasks import fashion
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.task import Metric, Task

WIDTHS = (784, 1000, 500, 250, 30)


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Reads Fashion-MNIST; each image, its pixels 0 … 1 in one row, is its own target.

    Raises:
        BenchError: Files are missing or broken.
    """
    train, test = (images.flatten(1).float().div_(255) for images, _ in fashion.read(source))
    return TrainTest(TensorSplit(train, train), TensorSplit(test, test))


def build_model() -> nn.Module:
    """Returns 784-1000-500-250-30 and its mirror: tanh between the layers, linear at both ends.

    Weights are Glorot's uniform ones, which suit tanh; at torch's own the layers before the middle
    hardly move for any first-order method.
    """
    widths = (*WIDTHS, *reversed(WIDTHS[:-1]))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inside, outside) in enumerate(pairwise(widths), start=1):
        linear = nn.Linear(inside, outside)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers[f"linear{number}"] = linear
        if number not in {len(WIDTHS) - 1, len(widths) - 1}:  # the code and the logits are linear
            layers[f"tanh{number}"] = nn.Tanh()
    return nn.Sequential(layers)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of pixels ``[N, pixels]``: a sum over an image, a mean of images."""
    total = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
    return total / len(targets)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the squared error of each image ``[N]``, from logits ``[N, pixels]``."""
    return (torch.sigmoid(outputs) - targets).square().sum(dim=1)


_PIXELS = Pairs(cross_entropy, squared_error)

FASHION_AUTOENCODER = Task(
    name="fashion-autoencoder",
    description="Fashion-MNIST through 30 numbers, 784-1000-500-250-30 and back, tanh",
    input_summary="60,000 + 10,000 images of 784 pixels, as 4 IDX files",
    load=load,
    model=build_model,
    loss=_PIXELS.loss,
    likelihood="bernoulli",
    metric=Metric(
        name="squared error",
        unit="",
        higher_is_better=False,
        score=_PIXELS.judge,
        low=0.0,
        high=784.0,
        digits=2,
    ),
    target=9.5,
    epochs=10,
    batch_size=512,
)
