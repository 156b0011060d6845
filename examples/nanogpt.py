"""Pre-train a small GPT on characters, as nanoGPT does: ``python examples/nanogpt.py``.

Accumulation, clipping, a warm-up and a fall to zero, and a head that shares the embedding's weight.
``--optimizer adamw`` runs the same loop with AdamW.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import THOR

CONTEXT, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, T, WIDTH]`` to the same shape."""
        q, k, v = self.attention(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).unbind(-3)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Predicts the next character at every position."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(symbols, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, symbols, bias=False)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.head.weight = self.tokens.weight  # tied: such a weight trains by AdamW's rule

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps characters ``[N, T]`` to logits ``[N, T, symbols]``."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    text = "\n".join(topics.values())  # Python's own help, 0.7 million characters
    letters = sorted(set(text))
    data = torch.tensor([letters.index(one) for one in text[:200_000]])
    model = GPT(len(letters))
    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003, weight_decay=0.1)
    warmup = max(1, said.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1 - step / said.steps)
    )

    losses = []
    for step in range(said.steps):
        total = 0.0
        for _ in range(said.accumulate):
            starts = torch.randint(len(data) - CONTEXT - 1, (16, 1))
            batch = data[starts + torch.arange(CONTEXT + 1)]
            logits = model(batch[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            (loss / said.accumulate).backward()
            total += loss.item() / said.accumulate
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
        if step % 50 == 0 or step == said.steps - 1:
            print(f"step {step:4}  loss {total:.3f}")
    return losses


if __name__ == "__main__":
    main()
