"""Fashion-MNIST: 60,000 small grey images, a small ResNet in bf16."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thor_bench.errors import BenchError, readable
from thor_bench.records.config import DataSource
from thor_bench.tasks.data import FlipAndCrop, TensorSplit, TrainTest
from thor_bench.tasks.files import FileSet, normalized
from thor_bench.tasks.models import small_resnet
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

FILES = FileSet(
    workload="fashion",
    names=(
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ),
    endings=("", ".gz"),
    dataset="FashionMNIST",
    folder="FashionMNIST/raw",
    system=Path("/usr/share/datasets/fashion-mnist"),
    remedy="apt install dataset-fashion-mnist, --data-dir DIR or --download",
)

_MEAN, _STD = 0.2860, 0.3530  # of the training pixels, scaled to 0 … 1
_IDX_OF_BYTES = b"\0\0\x08"


def _read_idx(path: Path) -> Tensor:
    """Reads an IDX file: three magic bytes, the number of dimensions, their sizes, the values."""
    with readable(path, "IDX file", "fetch it again"):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if not content.startswith(_IDX_OF_BYTES):
            raise ValueError("it does not begin as one")
        dimensions = content[3]
        sizes = np.frombuffer(content, ">u4", dimensions, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    return torch.from_numpy(values.copy())


def read(source: DataSource) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Reads the data set from ``--data-dir``, Debian's package or torchvision's download.

    Returns:
        Training and test set, each as bytes ``[N, 28, 28]`` and classes ``[N]``.

    Raises:
        BenchError: Files are missing or broken.
    """
    files = FILES.find(source)
    train_x, train_y, test_x, test_y = map(_read_idx, files)
    where = files[0].parent
    return _matching(train_x, train_y, where), _matching(test_x, test_y, where)


def _matching(images: Tensor, labels: Tensor, where: Path) -> tuple[Tensor, Tensor]:
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or not len(labels):
        message = f"{where}: images {list(images.shape)} and labels {list(labels.shape)}"
        raise BenchError(f"{message} do not belong together; fetch the files again")
    return images, labels.long()


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Reads the data set and normalizes its pixels; sources and errors as ``read``."""
    train, test = read(source)
    mean, std = torch.tensor([_MEAN]), torch.tensor([_STD])
    augment = FlipAndCrop(padding=2, background=-_MEAN / _STD)
    return TrainTest(
        TensorSplit(normalized(train[0].unsqueeze(1), mean, std), train[1], augment),
        TensorSplit(normalized(test[0].unsqueeze(1), mean, std), test[1]),
    )


def build_model() -> nn.Module:
    """Returns the small ResNet 16/32/64, one basic block a stage (78 thousand parameters)."""
    return small_resnet(channels_in=1, widths=(16, 32, 64), blocks=1, classes=10)


FASHION = Task(
    name="fashion",
    description="Fashion-MNIST, small ResNet 16/32/64, flips and shifts, bf16 autocast",
    input_summary="60,000 + 10,000 images of 1×28×28, 10 classes, IDX files",
    load=load,
    model=build_model,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=91.5,
    epochs=6,
    batch_size=128,
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
