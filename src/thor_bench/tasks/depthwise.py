"""A convnet of depthwise and pointwise convolutions on Fashion-MNIST, as in MobileNet."""

from collections import OrderedDict

from torch import nn

from thor_bench.tasks import vit
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2))  # channels out and stride of each


def separable(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    """Returns a 3×3 convolution channel by channel, then a 1×1 one (Howard et al. 2017)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU(),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def build_model() -> nn.Module:
    """Returns a 3×3 stem of stride 2, four separable stages and a linear head."""
    width = 32
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(1, width, 3, 2, 1, bias=False), norm=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    for number, (channels, stride) in enumerate(_STAGES, start=1):
        layers[f"stage{number}"] = separable(width, channels, stride=stride)
        width = channels
    layers |= {
        "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(width, 10)
    }  # fmt: skip
    return nn.Sequential(layers)


DEPTHWISE = Task(
    name="depthwise",
    description="Fashion-MNIST, depthwise-separable convnet 32/64/128/128/256",
    input_summary="60,000 + 2,500 images of 1×28×28, 10 classes, IDX files",
    load=vit.load,
    model=build_model,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=89.7,
    epochs=2,
    batch_size=128,
)
