"""Layers of other libraries, written anew: their types are known by name alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """Hugging Face's Linear with its weight stored (in, out), as GPT-2's ``c_attn`` has."""

    def __init__(self, nf: int, nx: int) -> None:
        """Takes outputs, then inputs."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """x W + b."""
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"
