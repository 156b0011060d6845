"""ImageNet as folders of JPEG files, torchvision's ResNet-50 (the paper's second task)."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from thor_bench.errors import BenchError
from thor_bench.records.config import DataSource
from thor_bench.tasks.data import TrainTest
from thor_bench.tasks.files import torchvision
from thor_bench.tasks.folders import FolderSplit
from thor_bench.tasks.pairs import ACCURACY, Pairs, percent_right
from thor_bench.tasks.task import Task

DEFAULT_DIRECTORY = Path("imagenet")
CLASSES = 1000

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE, _RESIZED = 224, 256


def load(source: DataSource) -> TrainTest[FolderSplit]:
    """Finds the images under ``train`` and ``val`` in ``--data-dir`` or in ``./imagenet``.

    Raises:
        BenchError: Folders are missing, or do not belong together.
    """
    base = DEFAULT_DIRECTORY if source.directory is None else source.directory
    missing = [str(base / part) for part in ("train", "val") if not (base / part).is_dir()]
    if missing:
        message = f"imagenet-resnet50: no folder {', '.join(missing)} (one folder per class in it)"
        raise BenchError(f"{message}; unpack ILSVRC2012 there, or name its --data-dir DIR")
    v2 = torchvision("transforms.v2")
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    views = {
        "train": [v2.RandomResizedCrop(_SIDE), v2.RandomHorizontalFlip(), *finish],
        "val": [v2.Resize(_RESIZED), v2.CenterCrop(_SIDE), *finish],
    }
    train, test = (
        FolderSplit(base / part, v2.Compose(view), source.workers) for part, view in views.items()
    )
    if train.classes != test.classes or len(train.classes) > CLASSES:
        message = f"{base}: {len(train.classes)} classes in train, {len(test.classes)} in val"
        raise BenchError(f"{message}; both must be the same, {CLASSES} at most")
    return TrainTest(train, test)


def build_model() -> nn.Module:
    """Returns torchvision's ResNet-50; the last BatchNorm of each block starts at zero."""
    resnet50 = torchvision("models").resnet50
    model: nn.Module = resnet50(num_classes=CLASSES, zero_init_residual=True)
    return model


CRITERION = partial(functional.cross_entropy, label_smoothing=0.1)
_CLASSES = Pairs(CRITERION, percent_right)

IMAGENET_RESNET50 = Task(
    name="imagenet-resnet50",
    description="ImageNet, ResNet-50, random resized crops, label smoothing 0.1, bf16 autocast",
    input_summary="1.28 million + 50,000 images of 3×224×224, 1,000 classes, folders of JPEG files",
    load=load,
    model=build_model,
    loss=_CLASSES.loss,
    metric=replace(ACCURACY, score=_CLASSES.judge),
    target=75.9,
    epochs=45,
    batch_size=256,
    autocast=torch.bfloat16,
    memory_format=torch.channels_last,
)
