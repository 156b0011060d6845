"""Models that hold every layer type with an adapter, for contracts about whole training loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foreign import Conv1D
from torch_thor import register_adapter
from torch_thor.layers import adapter_for


class Transposed(Conv1D):
    """A subclass does not count as its parent, unless the user says so."""


if (known := adapter_for(Conv1D(1, 1))) is not None:
    register_adapter(Transposed, known)

# What has an adapter and is only preconditioned where it is asked for.
OPTIONAL = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d, nn.GroupNorm)
VOCABULARY = 11


class Transformer(nn.Module):
    """Tokens [N, L] → [N, 3] through embedding, norms, fused attention and both Linears."""

    def __init__(self) -> None:
        """Draws the weights."""
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 8)
        self.before, self.after = nn.LayerNorm(8), nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.narrow = Transposed(12, 8), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """One block."""
        x = self.words(tokens)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(nn.functional.gelu(self.wide(self.after(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def autoencoder() -> nn.Sequential:
    """Images [N, 2, 6, 6] → [N, 3], down by a convolution and up by a transposed one."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def included(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The optional types that a model holds."""
    kinds = {type(module) for module in model.modules()}
    return tuple(kind for kind in OPTIONAL if kind in kinds)


def batch_for(model: nn.Module, samples: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs that fit one of the models above, and targets [samples, 3]."""
    if isinstance(model, Transformer):
        inputs = torch.randint(VOCABULARY, (samples, 5))
    else:
        inputs = torch.randn(samples, 2, 6, 6)
    return inputs, torch.randn(samples, 3)


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        """As in CIFAR's ResNets, with a convolution around where shapes differ."""
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))
        around = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.around: nn.Module = nn.Identity() if inside == outside else around

    def forward(self, x: Tensor) -> Tensor:
        """Adds both ways."""
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(inner)) + self.around(x))


def resnet20() -> nn.Sequential:
    """22 layers with curvature."""
    shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Residual(*shape) for shape in [*shapes, (64, 64, 1), (64, 64, 1)]),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
