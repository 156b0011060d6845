"""ImageNet as folders of JPEG files, torchvision's ResNet-50 (the paper's second task)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import DataSource
from thor_bench.tasks.base import ACCURACY, Workload
from thor_bench.tasks.loading import LazyTrainTest

DEFAULT_DIRECTORY = Path("imagenet")
CLASSES = 1000

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE, _RESIZED = 224, 256
_NEEDS = "imagenet-resnet50 needs torchvision; pip install 'torch-thor[vision]'"


class FolderSamples:
    """Images in one folder per class; classes count in the order of the folders' names.

    Args:
        directory: Folder of the classes' folders.
        transform: ``PIL image -> [3, H, W]``.

    Raises:
        BenchError: There is no image.
    """

    def __init__(self, directory: Path, transform: Callable[[object], Tensor]) -> None:
        from torchvision.datasets import ImageFolder  # noqa: PLC0415

        try:
            self._folder = ImageFolder(str(directory), transform=transform)
        except OSError as error:
            raise BenchError(f"{directory} holds no images ({reason(error)[:120]})") from error
        self.classes: list[str] = self._folder.classes

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._folder)

    def read(self, index: int) -> tuple[Tensor, int]:
        """Reads and transforms an image."""
        image, label = self._folder[index]
        return image, int(label)

    def path(self, index: int) -> Path:
        """Returns the file of an image."""
        return Path(self._folder.samples[index][0])


def _transforms() -> tuple[Callable[[object], Tensor], Callable[[object], Tensor]]:
    """Returns the changes of training and of test images."""
    try:
        from torchvision.transforms import v2  # noqa: PLC0415
    except ImportError as error:
        raise BenchError(_NEEDS) from error
    finish = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=_MEAN, std=_STD),
    ]
    train = v2.Compose([v2.RandomResizedCrop(_SIDE), v2.RandomHorizontalFlip(), *finish])
    return train, v2.Compose([v2.Resize(_RESIZED), v2.CenterCrop(_SIDE), *finish])


def load(source: DataSource) -> LazyTrainTest:
    """Finds the images under ``train`` and ``val`` in ``--data-dir`` or in ``./imagenet``.

    Raises:
        BenchError: Folders are missing, or do not belong together.
    """
    base = DEFAULT_DIRECTORY if source.directory is None else source.directory
    missing = [str(base / part) for part in ("train", "val") if not (base / part).is_dir()]
    if missing:
        message = f"imagenet-resnet50: no folder {', '.join(missing)} (one folder per class in it)"
        raise BenchError(f"{message}; unpack ILSVRC2012 there, or name its --data-dir DIR")
    train_view, test_view = _transforms()
    train = FolderSamples(base / "train", train_view)
    test = FolderSamples(base / "val", test_view)
    if train.classes != test.classes or len(train.classes) > CLASSES:
        message = f"{base}: {len(train.classes)} classes in train, {len(test.classes)} in val"
        raise BenchError(f"{message}; both must be the same, {CLASSES} at most")
    return LazyTrainTest(train, test)


def build_model() -> nn.Module:
    """Returns torchvision's ResNet-50; the last BatchNorm of each block starts at zero."""
    try:
        from torchvision.models import resnet50  # noqa: PLC0415
    except ImportError as error:
        raise BenchError(_NEEDS) from error
    model: nn.Module = resnet50(num_classes=CLASSES, zero_init_residual=True)
    return model


IMAGENET_RESNET50 = Workload(
    name="imagenet-resnet50",
    description="ImageNet, ResNet-50, random resized crops, label smoothing 0.1, bf16 autocast",
    input_summary="1.28 million + 50,000 images of 3×224×224, 1,000 classes, folders of JPEG files",
    load=load,
    build_model=build_model,
    loss=partial(functional.cross_entropy, label_smoothing=0.1),
    metric=ACCURACY,
    target=75.9,
    epochs=45,
    batch_size=256,
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
