"""Accelerate's loop with accumulation and clipping: ``python examples/accelerate_loop.py``.

``prepare`` wraps model, optimizer, loader and schedule as usual; build THOR before it, from the
plain model. ``accelerate launch examples/accelerate_loop.py`` runs it on several processes.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_thor import THOR


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every micro-batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no")
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision=said.mixed_precision)
    table, classes = load_digits(return_X_y=True)
    images = torch.tensor(table, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(images, torch.tensor(classes))
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip

    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003)
    steps = said.epochs * len(loader) // 2
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    losses = []
    for epoch in range(said.epochs):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        accelerator.print(f"epoch {epoch + 1}  loss {sum(losses[-10:]) / 10:.4f}")
    return losses


if __name__ == "__main__":
    main()
