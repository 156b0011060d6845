"""Batches of (inputs, targets): a model's outputs for the one are compared with the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from thor_bench.tasks.task import Metric

Compare = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Loss and score of a model on such batches.

    Attributes:
        criterion: ``(outputs, targets) -> scalar``, a mean over the batch.
        score: ``(outputs, targets) -> [samples]``: score of each sample.
    """

    criterion: Compare
    score: Compare

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss of a batch."""
        inputs, targets = batch
        return self.criterion(model(inputs), targets)

    def judge(self, model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the loss of a batch and the scores of its samples, from the same outputs."""
        inputs, targets = batch
        outputs = model(inputs).float()
        return self.criterion(outputs, targets), self.score(outputs, targets)


def percent_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns 100 for each sample whose largest output is its class, else 0."""
    return 100.0 * (outputs.argmax(dim=1) == targets).float()


CLASSES = Pairs(functional.cross_entropy, percent_right)
ACCURACY = Metric(
    name="accuracy",
    unit="%",
    higher_is_better=True,
    score=CLASSES.judge,
    low=0.0,
    high=100.0,
    digits=2,
)
