"""A new head on a frozen backbone, then all layers: ``python examples/finetune.py``.

The optimizer is built once. Frozen layers cost nothing, and have curvature again from the step in
which they are thawed. The backbone learned to tell even digits apart; the task is odd ones.
"""

from __future__ import annotations

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from torch_thor import THOR


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    steps: int,
    lr: float,
) -> list[float]:
    """Trains with a rate that falls to zero, and returns the loss of every step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)
    losses = []
    for _ in range(steps):
        picks = torch.randint(len(data[0]), (64,))
        loss = functional.cross_entropy(model(data[0][picks]), data[1][picks])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    """Pre-train, train the head, then everything; return the losses of the two last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.02, AdamW: 0.003")
    parser.add_argument("--steps", type=int, default=60, help="of each of the three parts")
    parser.add_argument("--images", type=int, default=600, help="that there are of the new task")
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    table, classes = load_digits(return_X_y=True)
    images = torch.tensor(table, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images, labels = functional.interpolate(images, 32), torch.tensor(classes)
    even, odd = ((images[labels % 2 == r], labels[labels % 2 == r] // 2) for r in range(2))

    model = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    train(model, THOR(model), even, said.steps, 0.03)

    model.reset_classifier(5)
    head = model.get_classifier()
    model.requires_grad_(requires_grad=False)
    head.requires_grad_(requires_grad=True)
    if said.optimizer == "thor":
        lr, optimizer = said.lr or 0.02, THOR(model)
    else:
        lr, optimizer = said.lr or 0.003, torch.optim.AdamW(model.parameters())
    few, rest = (tuple(part[where] for part in odd) for where in split(said.images))
    losses = train(model, optimizer, few, said.steps, lr)
    print(f"the head alone: loss {losses[-1]:.4f}, accuracy {accuracy(model, rest):.1%}")

    model.requires_grad_(requires_grad=True)
    losses += train(model, optimizer, few, said.steps, lr)
    print(f"all layers:     loss {losses[-1]:.4f}, accuracy {accuracy(model, rest):.1%}")
    return losses


def split(count: int) -> tuple[slice, slice]:
    """Returns which samples are trained on, and which are left to test on."""
    return slice(count), slice(count, None)


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Returns the share of images that are told right."""
    model.eval()
    with torch.no_grad():
        right = model(data[0]).argmax(1) == data[1]
    model.train()
    return right.float().mean().item()


if __name__ == "__main__":
    main()
