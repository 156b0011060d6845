"""CIFAR-10: 60,000 small colour images, ResNet-18 with a 3×3 stem (the paper's first task)."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thor_bench.errors import readable
from thor_bench.records.config import DataSource
from thor_bench.tasks.data import FlipAndCrop, TensorSplit, TrainTest
from thor_bench.tasks.files import FileSet, normalized
from thor_bench.tasks.models import small_resnet
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

FILES = FileSet(
    workload="cifar10-resnet18",
    names=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
    dataset="CIFAR10",
    folder="cifar-10-batches-py",
    remedy="unpack cifar-10-python.tar.gz in --data-dir DIR, or --download",
)

_MEAN = (0.4914, 0.4822, 0.4465)  # of the training pixels, scaled to 0 … 1
_STD = (0.2470, 0.2435, 0.2616)


class _ArraysOnly(pickle.Unpickler):
    """Reads the data set's pickles, which hold NumPy arrays, and can run nothing else."""

    _allowed: ClassVar = {"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer", "scalar"}

    def find_class(self, module: str, name: str) -> Any:
        """Finds the few names that an array's pickle needs."""
        if module.partition(".")[0] not in {"numpy", "_codecs"} or name not in self._allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return super().find_class(module, name)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Reads one pickle: bytes ``[N, 3, 32, 32]`` and classes ``[N]``."""
    with readable(path, "CIFAR-10 batch", "fetch it again"), path.open("rb") as file:
        content = _ArraysOnly(file, encoding="latin1").load()
        images = torch.from_numpy(np.array(content["data"], dtype=np.uint8))
        labels = torch.tensor(content["labels"], dtype=torch.int64)
        images = images.reshape(len(labels), 3, 32, 32)
    return images, labels


def _split(paths: Sequence[Path], augment: FlipAndCrop | None = None) -> TensorSplit:
    images, labels = (torch.cat(parts) for parts in zip(*map(_read_batch, paths), strict=True))
    pixels = normalized(images, torch.tensor(_MEAN), torch.tensor(_STD))
    return TensorSplit(pixels, labels, augment)


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Reads the data set from ``--data-dir`` or from torchvision's download.

    Raises:
        BenchError: Files are missing or broken.
    """
    *train, test = FILES.find(source)
    to_the_mean_colour = FlipAndCrop(padding=4, background=0.0)
    return TrainTest(_split(train, to_the_mean_colour), _split([test]))


def build_model() -> nn.Module:
    """Returns ResNet-18 with a 3×3 stem, its convolutions drawn from a normal distribution."""
    model = small_resnet(channels_in=3, widths=(64, 128, 256, 512), blocks=2, classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


CIFAR10_RESNET18 = Task(
    name="cifar10-resnet18",
    description="CIFAR-10, ResNet-18 with a 3×3 stem, flips and shifts, bf16 autocast",
    input_summary="50,000 + 10,000 images of 3×32×32, 10 classes, pickled batches",
    load=load,
    model=build_model,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=94.0,
    epochs=30,
    batch_size=128,
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
