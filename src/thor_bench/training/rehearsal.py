"""One batch of test data before training, so that a mistake there is not found an epoch later."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from thor_bench.errors import BenchError
from thor_bench.tasks.judging import Judged
from thor_bench.tasks.streams import random_states, restore_random
from thor_bench.training.precision import autocast
from thor_bench.training.session import Session, modes_kept

_SHIFT = 0.1  # of weights, beside which no layer is all zeros


def rehearse(session: Session) -> None:
    """Judges the first batch of the test data; the session is as before.

    Raises:
        BenchError: There is none, the task's own code fails, or its metric is no number.
    """
    with _untouched(session.model, session.device):
        session.model.eval()
        try:
            told = _judged(session)
        except BenchError:
            _loss(session)  # what fails in training too is told of as the loss's or the model's
            raise
        _require_numbers(session, told)
    try:
        for one in told:  # of several ranks some may have no part of few batches
            session.task.metric_of(one.score / one.samples)
    except BenchError as error:
        # An untrained model's score may lie where the function has no value.
        if not isinstance(error.__cause__, ArithmeticError | ValueError):
            raise


def _judged(session: Session) -> list[Judged]:
    return [session.judge(batch) for batch in session.data.test_batches(most=1)]


def _loss(session: Session) -> Tensor:
    """Returns the loss of the first training batch; of the model itself, as no rank waits here."""
    batch = next(session.data.batches(0))
    with autocast(session.task.autocast, session.device), torch.enable_grad():
        return session.task.loss_of(session.model, batch).detach()


def _require_numbers(session: Session, told: list[Judged]) -> None:
    """Raises for a score that is no number where the loss is one."""
    score = session.task.metric.score
    if score is None or not _have_nan(told) or not torch.isfinite(_loss(session)).all():
        return
    with _shifted(session.model):
        again = _judged(session)
    if _have_nan(again):
        with session.task.telling("the metric of a batch of test data", score):
            message = "metric returned NaN, and the loss is finite"
            raise ValueError(f"{message}; look for a division by zero, or labels that are NaN")


def _have_nan(told: list[Judged]) -> bool:
    return any(math.isnan(one.score) for one in told)


@contextmanager
def _shifted(model: nn.Module) -> Iterator[None]:
    """Inside, outputs differ: a head of zeros has constant ones, and these no correlation."""
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    with torch.no_grad():
        try:
            for parameter, weights in before:
                parameter.add_(_SHIFT * torch.randn_like(weights))
            yield
        finally:
            for parameter, weights in before:
                parameter.copy_(weights)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards buffers, modes and random states are as before."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    states = random_states()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), modes_kept(model):
            yield
    finally:
        restore_random(states)
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer.copy_(before))
