"""Train an LSTM on characters: ``python examples/lstm.py``.

An LSTM hands its weights to one function of torch, so it has no curvature: ``THOR(model)`` trains
them by Muon's rule. ``print(optimizer.coverage())`` says so, line by line.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import THOR

LENGTH, BATCH, WIDTH = 64, 32, 96


class Characters(nn.Module):
    """Predicts the next byte at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Maps bytes ``[N, T]`` to logits ``[N, T, 256]``."""
        hidden, _ = self.lstm(self.bytes(text))
        return self.head(functional.gelu(self.mix(hidden)))


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--steps", type=int, default=300)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = torch.tensor(list("\n".join(topics.values()).encode()))
    model = Characters()
    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=said.steps)

    losses = []
    for step in range(said.steps):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH, 1))
        batch = data[starts + torch.arange(LENGTH + 1)]
        logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step == 0 and said.optimizer == "thor":
            print(optimizer.coverage())
        if step % 50 == 49:
            print(f"step {step + 1:4}  loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
