"""A small LLaMA on the source of Python's library: RMSNorm, SwiGLU, rotations, an untied head."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from thor_bench import Task

CONTEXT, WIDTH, HEADS, SYMBOLS = 64, 128, 4, 128
FILES = ("argparse", "inspect", "typing", "tarfile", "subprocess", "pathlib", "ast", "pdb")


def turned(x, turn):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)])
        self.qkv, self.out = (nn.Linear(WIDTH, n * WIDTH, bias=False) for n in (3, 1))
        self.gate, self.up = (nn.Linear(WIDTH, 344, bias=False) for _ in range(2))
        self.down = nn.Linear(344, WIDTH, bias=False)

    def forward(self, x, turn):
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = turned(q, turn), turned(k, turn)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, SYMBOLS, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        pairs = torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS)
        angles = torch.arange(CONTEXT)[:, None] * 10_000**-pairs
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

    def forward(self, symbols):
        x = self.symbols(symbols)
        for block in self.blocks:
            x = block(x, self.turn)
        return self.head(self.norm(x))


def loss(model, windows):
    return functional.cross_entropy(model(windows[:, :-1]).mT, windows[:, 1:])


def task():
    folder = Path(os.__file__).parent
    text = b"".join((folder / f"{name}.py").read_bytes() for name in FILES)
    codes = torch.tensor([code for code in text if code < SYMBOLS])
    windows = codes.unfold(0, CONTEXT + 1, CONTEXT)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    train, test = windows[:-400].contiguous(), windows[-400:].contiguous()
    return Task(
        model=Llama, loss=loss, train=train, test=test, batch_size=16, epochs=1,
        steps_per_epoch=300, loss_reduction="positions_mean",
    )  # fmt: skip
