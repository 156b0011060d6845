"""The largest table that scikit-learn ships: 64 counts a row, an MLP without normalization."""

import torch
from torch import nn

from thor_bench.records.config import DataSource
from thor_bench.tasks import digits
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.pairs import ACCURACY, CLASSES
from thor_bench.tasks.task import Task

_WIDTH = 256


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Returns the rows of ``digits`` with each column standardized by its training values."""
    parts = digits.load(source)
    train, test = (split.inputs.flatten(1) for split in (parts.train, parts.test))
    mean, spread = train.mean(dim=0), train.std(dim=0)
    spread = torch.where(spread > 0, spread, 1.0)  # three columns never change
    return TrainTest(
        TensorSplit((train - mean) / spread, parts.train.targets),
        TensorSplit((test - mean) / spread, parts.test.targets),
    )


def build_model() -> nn.Module:
    """Returns an MLP with three hidden layers of 256 and ReLU."""
    return nn.Sequential(
        nn.Linear(64, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, _WIDTH),
        nn.ReLU(),
        nn.Linear(_WIDTH, 10),
    )


TABULAR = Task(
    name="tabular",
    description="scikit-learn's table of digits, columns standardized, MLP of 3 × 256",
    input_summary="1,078 + 719 rows of 64 counts, 10 classes, embedded",
    load=load,
    model=build_model,
    loss=CLASSES.loss,
    metric=ACCURACY,
    target=96.5,
    epochs=10,
    batch_size=64,
)
