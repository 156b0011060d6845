"""A model of timm, a ViT or a convnet: ``python examples/timm_images.py --model test_resnet``.

The data are scikit-learn's digits, drawn larger. ``--optimizer adamw`` trains the same with AdamW.
"""

from __future__ import annotations

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from torch_thor import THOR

SIZE, TRAINING = 32, 1500


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="test_vit", help="any name of timm.list_models()")
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.001")
    parser.add_argument("--epochs", type=int, default=10)
    said = parser.parse_args(arguments)

    torch.manual_seed(0)
    table, classes = load_digits(return_X_y=True)
    images = torch.tensor(table, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = functional.interpolate(images, SIZE, mode="bilinear")
    data = TensorDataset(images, torch.tensor(classes))
    training, test = (torch.utils.data.Subset(data, r) for r in split(len(data)))
    loader = DataLoader(training, batch_size=128, shuffle=True, drop_last=True)

    options = {"num_classes": 10, "in_chans": 1}
    if "vit" in said.model:
        options |= {"img_size": SIZE, "patch_size": 8}
    model = timm.create_model(said.model, **options)

    if said.optimizer == "thor":
        # norms, biases, class token and the head: AdamW at 0.15 of it
        optimizer = THOR(model, lr=said.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=said.lr or 0.001, weight_decay=0.05)
    steps = said.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=0.05,
        cycle_momentum=False,
    )

    losses = []
    for epoch in range(said.epochs):
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}  loss {losses[-1]:.3f}  accuracy {accuracy(model, test):.1%}")
    return losses


def split(samples: int) -> tuple[range, range]:
    """Returns the numbers of the samples to train on, and of those to test on."""
    return range(TRAINING), range(TRAINING, samples)


def accuracy(model: torch.nn.Module, test: torch.utils.data.Dataset) -> float:
    """Returns the share of the test images that are told right."""
    model.eval()
    inputs, targets = next(iter(DataLoader(test, batch_size=len(test))))
    with torch.no_grad():
        return (model(inputs).argmax(1) == targets).float().mean().item()


if __name__ == "__main__":
    main()
