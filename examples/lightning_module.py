"""A LightningModule that trains a convnet with batch norm: ``python examples/lightning_module.py``.

``configure_optimizers`` returns the optimizer and a schedule, nothing else changes. THOR is built
from the module itself, so it has all layers under their own names.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from torch_thor import THOR


class Digits(lightning.LightningModule):
    """Classifies images of 8×8 pixels.

    Args:
        optimizer: ``"thor"`` or ``"adamw"``.
        lr: Its rate at first; ``None`` takes the usual one.
    """

    def __init__(self, optimizer: str, lr: float | None) -> None:
        super().__init__()
        self.optimizer, self.lr, self.losses = optimizer, lr, []
        self.net = nn.Sequential(
            self.block(1, 16), self.block(16, 32), nn.MaxPool2d(2), self.block(32, 32),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    @staticmethod
    def block(before: int, after: int) -> nn.Sequential:
        """Returns a convolution with its norm."""
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        """Returns the loss of a batch."""
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Returns the optimizer, and a schedule of all steps."""
        if self.optimizer == "thor":
            optimizer = THOR(self, lr=self.lr)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr or 0.003)
        steps = int(self.trainer.estimated_stepping_batches)
        falling = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of every batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=["thor", "adamw"], default="thor")
    parser.add_argument("--lr", type=float, help="its peak; THOR: 0.03, AdamW: 0.003")
    parser.add_argument("--epochs", type=int, default=5)
    said = parser.parse_args(arguments)

    lightning.seed_everything(0, verbose=False)
    table, classes = load_digits(return_X_y=True)
    images = torch.tensor(table, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(images, torch.tensor(classes))
    module = Digits(said.optimizer, said.lr)
    trainer = lightning.Trainer(
        max_epochs=said.epochs,
        accelerator="auto",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=64, shuffle=True))
    print(f"loss {sum(module.losses[-10:]) / 10:.4f}")
    return module.losses


if __name__ == "__main__":
    main()
