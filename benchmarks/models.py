"""Models and batches that the step benchmarks train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks import GPT, ViT, cifar_resnet18, resnet50
from torch_thor import multiplies_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Task:
    """A model with a batch of random data of the right shape.

    Args:
        build: Makes the model.
        inputs: Shape of one batch.
        classes: Number of classes.
        tokens: Whether inputs are token numbers; every position has the next one as its target.
        exclude: Modules that THOR leaves to the base rule.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int
    tokens: bool = False
    exclude: tuple[str, ...] = ()

    def model(self) -> nn.Module:
        """Builds the model, always with the same weights."""
        torch.manual_seed(0)
        model = self.build()
        return model if self.tokens else model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def batch(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Draws a batch, always the same on a device."""
        how: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(1),
            "device": device,
        }
        if self.tokens:
            samples, length = self.inputs
            drawn = torch.randint(self.classes, (samples, length + 1), **how)
            return drawn[:, :-1].contiguous(), drawn[:, 1:].flatten()
        images = torch.randn(self.inputs, **how)
        targets = torch.randint(self.classes, self.inputs[:1], **how)
        return images.contiguous(memory_format=torch.channels_last), targets

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss, under bf16 autocast where the hardware multiplies bfloat16."""
        device = batch[0].device
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device)):
            return functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1])


def _fashion_resnet() -> nn.Module:
    from thor_bench.tasks.models import small_resnet  # noqa: PLC0415 - its package needs the bench's extras

    return small_resnet(channels_in=1, widths=(16, 32, 64), blocks=1, classes=10)


def _gpt(blocks: int, width: int) -> Task:
    """A small vocabulary, so that the blocks are most of the work."""

    def build() -> nn.Module:
        return GPT(blocks, width, vocabulary=512)

    return Task(build, (4, 256), 512, tokens=True)


TASKS = {
    "small-resnet": Task(_fashion_resnet, (128, 1, 28, 28), 10),
    "resnet18": Task(cifar_resnet18, (128, 3, 32, 32), 10),
    "resnet50": Task(resnet50, (8, 3, 224, 224), 1000),
    "vit-b16": Task(ViT, (8, 3, 224, 224), 1000),
    "gpt2-small": Task(GPT, (2, 1024), 50257, tokens=True),
    **{f"gpt-width-{width}": _gpt(4, width) for width in (128, 256, 512, 1024)},
    **{f"gpt-depth-{blocks}": _gpt(blocks, 256) for blocks in (2, 4, 8, 16)},
}
