"""The callbacks of Lightning and of the Trainer, in their own loops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torch_thor
from helpers import mean_half_square, mlp
from torch_thor import THOR, Preconditioner

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is asked for
lightning = pytest.importorskip("lightning", reason="install the group 'integrations'")
transformers = pytest.importorskip("transformers", reason="install the group 'integrations'")

from torch_thor.watching.lightning import CurvatureMonitor  # noqa: E402
from torch_thor.watching.transformers import CurvatureCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages' own

LAYERS = ["0", "2"]


class Kept(lightning.pytorch.loggers.logger.DummyLogger):  # type: ignore[misc,name-defined]
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None, **_: Any) -> None:
        """One record."""
        if any(name.startswith("age") or "/age" in name for name in metrics):
            self.seen.append((step or 0, dict(metrics)))


class Regression(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """The MLP of the helpers."""

    def __init__(self, optimizer: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self._build = mlp(), optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch."""
        return mean_half_square(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """The optimizer."""
        return self._build(self)


def fitted(module: Any, monitor: CurvatureMonitor, **options: Any) -> Kept:
    logger = Kept()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(48, 5), torch.randn(48, 3)), 4))
    return logger


def graft(model: nn.Module) -> THOR:
    return THOR(model, norm_control="graft")


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [5, 10]), (2, [5])])
def test_lightning_logs_every_n_steps(accumulate: int, steps: list[int]) -> None:
    """Twelve batches, with gradients still there: steps and directions are known."""
    logger = fitted(
        Regression(graft), CurvatureMonitor(every=5), accumulate_grad_batches=accumulate
    )
    assert [step for step, _ in logger.seen] == steps
    for name in ("step ÷ weight", "turned", "rank of A"):
        for layer in LAYERS:
            assert logger.seen[-1][1][f"{name}/model.{layer}"] > 0


def test_lightning_without_a_curvature_logs_nothing() -> None:
    module = Regression(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    assert fitted(module, CurvatureMonitor(every=5)).seen == []


def test_lightning_watches_what_it_is_told_to() -> None:
    class Preconditioned(Regression):
        def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ARG002
            preconditioner.step()

    module = Preconditioned(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
    preconditioner = Preconditioner(module)
    logger = fitted(module, CurvatureMonitor(every=6, of=preconditioner))
    assert [step for step, _ in logger.seen] == [6, 12]
    assert "rank of A/model.0" in logger.seen[0][1]


class Words(nn.Module):
    """A model as the Trainer wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and outputs."""
        outputs = self.model(inputs)
        return {"loss": mean_half_square(outputs, labels), "logits": outputs}


def test_the_trainer_hands_them_to_its_trackers(tmp_path: Path, capsys: Any) -> None:
    model = Words()
    thor = THOR(model, norm_control="graft")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=6,
        report_to=["tensorboard"],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "board")
    rows = [{"inputs": torch.randn(5), "labels": torch.randn(3)} for _ in range(24)]
    schedule = torch.optim.lr_scheduler.LinearLR(thor, total_iters=6)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, optimizers=(thor, schedule)
    )
    callback = CurvatureCallback(trainer, every=3)
    try:
        trainer.train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    assert callback.latest is not None
    assert callback.latest.steps == 6
    assert all(one.step > 0 for one in callback.latest)
    assert not any("rank" in key for entry in trainer.state.log_history for key in entry)
    assert "rank of A" not in capsys.readouterr().out
    assert steps_in(tmp_path / "board", "rank of A/model.0") == [3, 6]


def steps_in(folder: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing import (  # noqa: PLC0415 (it takes seconds)
        event_accumulator,
    )

    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    found = [tag for tag in read.Tags()["scalars"] if tag.replace("_", " ").endswith(name)]
    return [event.step for event in read.Scalars(found[0])]


MISSING = """
import sys
sys.modules.update(dict.fromkeys(["lightning", "pytorch_lightning", "transformers"]))
for package in ("lightning", "transformers"):
    try:
        __import__(f"torch_thor.watching.{package}")
    except ImportError as error:
        print(error)
"""


def test_a_package_that_is_missing_is_named() -> None:
    source = str(Path(torch_thor.__file__).parents[1])
    done = subprocess.run(  # noqa: S603 (ourselves)
        [sys.executable, "-c", MISSING],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    for package in ("lightning", "transformers"):
        assert f"pip install {package}" in done.stdout
