"""Fit an MLP to a table of numbers: ``python examples/tabular_mlp.py``.

A step of such a model takes a millisecond, so large batches suit THOR best.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import make_friedman1
from torch import nn

from torch_thor import THOR


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, print the test error, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=512)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    table, wanted = make_friedman1(n_samples=5120, n_features=10, noise=0.1, random_state=0)
    inputs = torch.tensor(table, dtype=torch.float32)
    targets = torch.tensor(wanted, dtype=torch.float32)[:, None]
    targets = (targets - targets.mean()) / targets.std()
    training, test = slice(0, 4096), slice(4096, None)

    model = nn.Sequential(
        nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
    )
    if said.optimizer == "thor":
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.003)
    steps = said.epochs * (4096 // said.batch)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)

    losses = []
    for _ in range(said.epochs):
        for picks in torch.randperm(4096).split(said.batch):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs[training][picks]), targets[training][picks])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    with torch.no_grad():
        error = nn.functional.mse_loss(model(inputs[test]), targets[test])
    print(f"{len(losses)} steps, test error {error:.4f} of the variance")
    return losses


if __name__ == "__main__":
    main()
