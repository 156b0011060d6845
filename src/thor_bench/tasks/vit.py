"""A small vision transformer on Fashion-MNIST, from patches of 4×4 pixels."""

import torch
from torch import Tensor, nn

from thor_bench.records.config import DataSource
from thor_bench.tasks import fashion
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.gpt import Block
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

WIDTH, BLOCKS, HEADS, PATCH = 96, 4, 4, 4
_JUDGED = 2_500  # images of the test set that are evaluated


class ViT(nn.Module):
    """Patches through blocks of attention to the mean of their features (Dosovitskiy 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.places = nn.Embedding((28 // PATCH) ** 2, WIDTH)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, causal=False) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[N, 1, 28, 28]`` to ``[N, 10]``."""
        hidden = self.patches(inputs).flatten(2).transpose(1, 2)
        places = self.places(torch.arange(hidden.shape[1], device=inputs.device))
        outputs: Tensor = self.head(self.norm(self.blocks(hidden + places)).mean(dim=1))
        return outputs


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Reads Fashion-MNIST as ``fashion`` does, without flips and shifts."""
    parts = fashion.load(source)
    return TrainTest(
        TensorSplit(parts.train.inputs, parts.train.targets),
        TensorSplit(parts.test.inputs[:_JUDGED], parts.test.targets[:_JUDGED]),
    )


VIT = Task(
    name="vit",
    description="Fashion-MNIST, vision transformer of 4 blocks of width 96, patches of 4×4",
    input_summary="60,000 + 2,500 images of 1×28×28, 10 classes, IDX files",
    load=load,
    model=ViT,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=83.4,
    epochs=1,
    batch_size=128,
)
