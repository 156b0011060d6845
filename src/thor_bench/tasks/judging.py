"""What a loss and a metric may return, and what it says of a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thor_bench.tasks.trees import named, samples

Score = float | Tensor | tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True)
class Judged:
    """Sums over the samples of a batch.

    Attributes:
        samples: Their number.
        score: Sum of their scores.
        loss: Sum of their losses; None where it is not known.
    """

    samples: int
    score: float
    loss: float | None = None


def checked_loss(loss: Any) -> Tensor:
    """Returns a loss that a step can begin with.

    Raises:
        TypeError: It is no tensor of one number.
        ValueError: It depends on no parameter.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TypeError(f"loss returned {named(loss)}; it must be one number: take its mean")
    if loss.is_complex():
        raise TypeError("loss returned a complex number; it must be real: take abs() or .real")
    if torch.is_grad_enabled() and not loss.requires_grad:
        message = "loss returned a number without a gradient"
        raise ValueError(
            f"{message}; compute it from the model's outputs, without detach or no_grad"
        )
    return loss


def judged_loss(loss: Tensor, batch: Any) -> Judged:
    """Returns what a loss, a mean over a batch, says of it."""
    count = samples(batch)
    total = float(loss.detach()) * count
    return Judged(count, total, total)


def judged(told: Any, batch: Any) -> Judged:
    """Returns what a metric says of a batch: a score, or (loss, score).

    Raises:
        TypeError: It is neither a number nor one for each sample.
    """
    count = samples(batch)
    loss, score = told if isinstance(told, tuple) and len(told) == 2 else (None, told)
    return Judged(count, _sum(score, count), None if loss is None else _sum(loss, count))


def _sum(value: Any, count: int) -> float:
    """Returns the sum over samples of their mean, or of each one's number."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return float(value) * count
        if value.shape == (count,):
            return float(value.sum())
    try:
        return float(value) * count
    except (TypeError, ValueError, RuntimeError) as error:
        allowed = f"a number, the mean over the batch, or a tensor [{count}] of the samples' scores"
        raise TypeError(f"metric returned {named(value)}; it must return {allowed}") from error
