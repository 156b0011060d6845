"""CIFAR-10: 60,000 small colour images, ResNet-18 with a 3×3 stem (the paper's first task)."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource
from thor_bench.tasks.base import ACCURACY, Workload
from thor_bench.tasks.data import FlipAndCrop, TensorSplit, TrainTest
from thor_bench.tasks.models import small_resnet

DOWNLOAD_DIRECTORY = Path.home() / ".cache" / "torch-thor"
FOLDER = "cifar-10-batches-py"

_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_MEAN = (0.4914, 0.4822, 0.4465)  # of the training pixels, scaled to 0 … 1
_STD = (0.2470, 0.2435, 0.2616)


class _ArraysOnly(pickle.Unpickler):
    """Reads the data set's pickles, which hold NumPy arrays, and can run nothing else."""

    _allowed: ClassVar = {"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer", "scalar"}

    def find_class(self, module: str, name: str) -> Any:
        """Finds the few names that an array's pickle needs."""
        if (
            module.split(".", maxsplit=1)[0] not in {"numpy", "_codecs"}
            or name not in self._allowed
        ):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return super().find_class(module, name)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    """Reads one pickle: bytes ``[N, 3, 32, 32]`` and classes ``[N]``."""
    try:
        with path.open("rb") as file:
            content = _load(file)
        images = torch.from_numpy(np.array(content["data"], dtype=np.uint8))
        labels = torch.tensor(content["labels"], dtype=torch.int64)
        images = images.reshape(len(labels), 3, 32, 32)
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
        RuntimeError, ImportError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        message = f"{path} is no readable CIFAR-10 batch ({reason(error)[:120]})"
        raise BenchError(f"{message}; fetch it again") from error
    return images, labels


def _load(file: BinaryIO) -> Any:
    return _ArraysOnly(file, encoding="latin1").load()


def _locate(source: DataSource) -> Path:
    """Returns the folder of the batches.

    Raises:
        BenchError: It is nowhere, and may not or cannot be downloaded.
    """
    base = DOWNLOAD_DIRECTORY if source.directory is None else source.directory
    places = [base / FOLDER, base]
    for place in places:
        if all((place / name).is_file() for name in (*_TRAIN, *_TEST)):
            return place
    if source.download:
        return _download(base)
    names, looked = ", ".join((*_TRAIN, *_TEST)), ", ".join(map(str, places))
    message = f"cifar10-resnet18: no complete set of {names} in {looked}"
    raise BenchError(f"{message}; unpack cifar-10-python.tar.gz in --data-dir DIR, or --download")


def _download(base: Path) -> Path:
    """Fetches the files by torchvision and returns their folder."""
    try:
        from torchvision.datasets import CIFAR10  # noqa: PLC0415

        CIFAR10(str(base), download=True)
    except (ImportError, OSError, RuntimeError) as error:
        message = f"--download of CIFAR-10 failed ({reason(error)}); name a --data-dir"
        raise BenchError(message) from error
    return base / FOLDER


def _split(directory: Path, names: tuple[str, ...]) -> TensorSplit:
    """Joins batches and normalizes pixels."""
    batches = [_read_batch(directory / name) for name in names]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (_MEAN, _STD))
    pixels = torch.cat([images for images, _ in batches]).float().div_(255).sub_(mean).div_(std)
    return TensorSplit(pixels, torch.cat([labels for _, labels in batches]))


def load(source: DataSource) -> TrainTest:
    """Reads the data set from ``--data-dir`` or from torchvision's download.

    Raises:
        BenchError: Files are missing or broken.
    """
    directory = _locate(source)
    return TrainTest(_split(directory, _TRAIN), _split(directory, _TEST))


def build_model() -> nn.Module:
    """Returns ResNet-18 with a 3×3 stem, its convolutions drawn from a normal distribution."""
    model = small_resnet(channels_in=3, widths=(64, 128, 256, 512), blocks=2, classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


CIFAR10_RESNET18 = Workload(
    name="cifar10-resnet18",
    description="CIFAR-10, ResNet-18 with a 3×3 stem, flips and shifts, bf16 autocast",
    input_summary="50,000 + 10,000 images of 3×32×32, 10 classes, pickled batches",
    load=load,
    build_model=build_model,
    loss=functional.cross_entropy,
    metric=ACCURACY,
    target=94.0,
    epochs=30,
    batch_size=128,
    augment=FlipAndCrop(padding=4, background=0.0),  # the mean colour
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
