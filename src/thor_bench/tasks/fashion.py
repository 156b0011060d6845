"""Fashion-MNIST: 60,000 small grey images, a small ResNet in bf16."""

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource
from thor_bench.tasks.base import ACCURACY, Workload
from thor_bench.tasks.data import FlipAndCrop, TensorSplit, TrainTest
from thor_bench.tasks.models import small_resnet

SYSTEM_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_DIRECTORY = Path.home() / ".cache" / "torch-thor"

_MEAN, _STD = 0.2860, 0.3530  # of the training pixels, scaled to 0 … 1
_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _read_idx(path: Path) -> Tensor:
    """Reads an IDX file, packed with gzip or not, by torchvision's reader."""
    try:
        from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor  # noqa: PLC0415
    except ImportError as error:
        message = "fashion needs torchvision to read its files; pip install 'torch-thor[vision]'"
        raise BenchError(message) from error
    try:
        if path.suffix != ".gz":
            return cast("Tensor", read_sn3_pascalvincent_tensor(str(path)))
        with gzip.open(path) as packed, tempfile.NamedTemporaryFile() as plain:
            shutil.copyfileobj(packed, plain)  # the reader wants a name, not a stream
            plain.flush()
            return cast("Tensor", read_sn3_pascalvincent_tensor(plain.name))
    except (OSError, EOFError, AssertionError, KeyError, ValueError, RuntimeError) as error:
        message = f"{path} is no readable IDX file ({reason(error)}); fetch it again"
        raise BenchError(message) from error


def _find(directory: Path) -> list[Path] | None:
    """Returns the four files of the data set in a folder, or None where one is missing."""
    found = []
    for stem in _STEMS:
        candidates = [directory / stem, directory / f"{stem}.gz"]
        present = next((path for path in candidates if path.is_file()), None)
        if present is None:
            return None
        found.append(present)
    return found


def _download() -> list[Path]:
    """Fetches the files by torchvision and returns them."""
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415

    try:
        FashionMNIST(str(DOWNLOAD_DIRECTORY), download=True)
    except (OSError, RuntimeError) as error:
        message = f"--download of Fashion-MNIST failed ({reason(error)}); name a --data-dir"
        raise BenchError(message) from error
    files = _find(DOWNLOAD_DIRECTORY / "FashionMNIST" / "raw")
    if files is None:
        raise BenchError(f"--download left no IDX files in {DOWNLOAD_DIRECTORY}; remove it, retry")
    return files


def _locate(source: DataSource) -> list[Path]:
    """Returns the four files from the first folder that has them all.

    Raises:
        BenchError: No folder has them, and they may not or cannot be downloaded.
    """
    places = [SYSTEM_DIRECTORY, DOWNLOAD_DIRECTORY / "FashionMNIST" / "raw"]
    if source.directory is not None:
        places = [source.directory]  # a folder that the user names is never replaced silently
    for place in places:
        files = _find(place)
        if files is not None:
            return files
    if source.download:
        return _download()
    names = ", ".join(f"{stem}[.gz]" for stem in _STEMS)
    looked = ", ".join(map(str, places))
    message = f"fashion: no complete set of {names} in {looked}"
    raise BenchError(f"{message}; apt install dataset-fashion-mnist, --data-dir DIR or --download")


def read(source: DataSource) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Reads the data set from ``--data-dir``, Debian's package or torchvision's download.

    Returns:
        Training and test set, each as bytes ``[N, 28, 28]`` and classes ``[N]``.

    Raises:
        BenchError: Files are missing or broken.
    """
    files = _locate(source)
    train_x, train_y, test_x, test_y = (_read_idx(path) for path in files)
    where = files[0].parent
    return _matching(train_x, train_y, where), _matching(test_x, test_y, where)


def _matching(images: Tensor, labels: Tensor, where: Path) -> tuple[Tensor, Tensor]:
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels) or not len(labels):
        message = f"{where}: images {list(images.shape)} and labels {list(labels.shape)}"
        raise BenchError(f"{message} do not belong together; fetch the files again")
    return images, labels.long()


def _normalized(images: Tensor) -> Tensor:
    return images.unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_STD)


def load(source: DataSource) -> TrainTest:
    """Reads the data set and normalizes its pixels; sources and errors as ``read``."""
    train, test = (TensorSplit(_normalized(images), labels) for images, labels in read(source))
    return TrainTest(train, test)


def build_model() -> torch.nn.Module:
    """Returns the small ResNet 16/32/64, one basic block a stage (78 thousand parameters)."""
    return small_resnet(channels_in=1, widths=(16, 32, 64), blocks=1, classes=10)


FASHION = Workload(
    name="fashion",
    description="Fashion-MNIST, small ResNet 16/32/64, flips and shifts, bf16 autocast",
    input_summary="60,000 + 10,000 images of 1×28×28, 10 classes, IDX files",
    load=load,
    build_model=build_model,
    loss=functional.cross_entropy,
    metric=ACCURACY,
    target=91.5,
    epochs=6,
    batch_size=128,
    augment=FlipAndCrop(padding=2, background=-_MEAN / _STD),
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
