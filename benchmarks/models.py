"""Models and batches that the step benchmarks train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18, resnet50, vit_b_16

from thor_bench.training.precision import autocast

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
        with autocast(torch.bfloat16, batch[0].device):
            return functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1])


class Block(nn.Module):
    """A GPT-2 block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, positions, width = x.shape
        q, k, v = (
            part.view(samples, positions, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(samples, positions, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """GPT-2 small's shape by default, its head tied and left to the base rule."""

    def __init__(self, blocks: int = 12, width: int = 768, vocabulary: int = 50257) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))


def cifar_resnet18() -> nn.Module:
    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


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
    "vit-b16": Task(vit_b_16, (8, 3, 224, 224), 1000),
    "gpt2-small": Task(GPT, (2, 1024), 50257, tokens=True),
    **{f"gpt-width-{width}": _gpt(4, width) for width in (128, 256, 512, 1024)},
    **{f"gpt-depth-{blocks}": _gpt(blocks, 256) for blocks in (2, 4, 8, 16)},
}
