"""Promise: a LightningModule only returns the optimizer, and everything else runs unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from helpers import AT_EVERY_STEP, assert_same_weights, mean_half_square, mlp, weights
from torch_thor import THOR

if TYPE_CHECKING:
    from pathlib import Path

lightning = pytest.importorskip("lightning", reason="install the group 'integrations'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's own: workers, loggers, dtypes


class Regression(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """The MLP of the helpers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch."""
        return mean_half_square(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer and a scheduler."""
        optimizer = THOR(self, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(folder: Path | None, epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(inputs: Tensor, targets: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def test_fit_is_the_loop_by_hand() -> None:
    """Case 33: accumulation, clipping and a scheduler of each step, through closures."""
    module = Regression()
    twin = mlp()
    twin.load_state_dict(module.model.state_dict())
    inputs, targets = torch.randn(24, 5), torch.randn(24, 3)
    fit = trainer(
        None, 1, accumulate_grad_batches=2, gradient_clip_val=1.0, enable_checkpointing=False
    )
    fit.fit(module, loader(inputs, targets))
    by_hand = THOR(twin, norm_control="graft", lr=0.05, **AT_EVERY_STEP)
    schedule = torch.optim.lr_scheduler.ExponentialLR(by_hand, 0.9)
    for x, y in zip(inputs.split(8), targets.split(8), strict=True):
        for part in (slice(0, 4), slice(4, 8)):
            (mean_half_square(twin(x[part]), y[part]) / 2).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        by_hand.step()
        schedule.step()
        by_hand.zero_grad()
    assert_same_weights(module.model, twin)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_clipping_under_mixed_precision(precision: Any) -> None:
    """Case 71: Lightning refuses it for optimizers that unscale by themselves."""
    module = Regression()
    before = weights(module.model)
    inputs, targets = torch.randn(24, 5), torch.randn(24, 3)
    fit = trainer(None, 2, precision=precision, gradient_clip_val=1.0, enable_checkpointing=False)
    fit.fit(module, loader(inputs, targets))
    assert not any(torch.equal(*pair) for pair in zip(before, weights(module.model), strict=True))


def test_a_checkpoint_resumes(tmp_path: Path) -> None:
    """Case 33, 35."""
    inputs, targets = torch.randn(12, 5), torch.randn(12, 3)
    whole = Regression()
    start = {name: value.clone() for name, value in whole.state_dict().items()}
    trainer(tmp_path, 2, enable_checkpointing=False).fit(whole, loader(inputs, targets))
    half = Regression()
    half.load_state_dict(start)
    first = trainer(tmp_path, 1)
    first.fit(half, loader(inputs, targets))
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest = Regression()
    trainer(tmp_path, 2).fit(rest, loader(inputs, targets), ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(whole.model, rest.model)
