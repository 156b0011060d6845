"""One batch of test data before training, so that a mistake there is not found an epoch later."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from thor_bench.errors import BenchError
from thor_bench.tasks.streams import random_states, restore_random
from thor_bench.training.session import Session, modes_kept


def rehearse(session: Session) -> None:
    """Judges the first batch of the test data; the session is as before.

    Raises:
        BenchError: There is none, or the task's own code fails.
    """
    with _untouched(session.model, session.device):
        session.model.eval()
        told = [session.judge(batch) for batch in session.data.test_batches(most=1)]
    try:
        for one in told:  # of several ranks some may have no part of few batches
            session.task.metric_of(one.score / one.samples)
    except BenchError as error:
        # An untrained model's score may lie where the function has no value.
        if not isinstance(error.__cause__, ArithmeticError | ValueError):
            raise


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
