"""Models of the built-in workloads."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut (He et al., 2016).

    The first one has the stride; the shortcut is projected where shapes change.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps ``[N, C_in, H, W]`` to ``[N, C_out, H/stride, W/stride]``."""
        hidden = functional.relu(self.norm1(self.conv1(inputs)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.shortcut(inputs))


def small_resnet(
    *, channels_in: int, widths: Sequence[int], blocks: int, classes: int
) -> nn.Sequential:
    """Returns a ResNet for small images: a 3×3 stem, one stage per width, a linear head.

    Every stage but the first halves the resolution; each has ``blocks`` basic blocks.
    """
    width = widths[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(channels_in, width, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    for stage, stage_width in enumerate(widths, start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            layers[f"stage{stage}_block{block}"] = BasicBlock(width, stage_width, stride=stride)
            width = stage_width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def digit_convnet() -> nn.Sequential:
    """Returns a convnet with BatchNorm for 8×8 digits: ``[N, 1, 8, 8]`` to ``[N, 10]``."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 64, 3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(64),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
        "norm2": nn.BatchNorm2d(128),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(128, 128, 3, stride=2, padding=1, bias=False),
        "norm3": nn.BatchNorm2d(128),
        "relu3": nn.ReLU(),
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(512, 64),
        "relu4": nn.ReLU(),
        "head": nn.Linear(64, 10),
    }
    return nn.Sequential(OrderedDict(layers))
