"""Steps that leave nothing behind."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thor_bench.training.session import Session, modes_kept


@contextmanager
def taken_back(session: Session) -> Iterator[None]:
    """Inside, steps may be taken; afterwards weights, optimizers and draws are as before."""
    model = copy.deepcopy(session.model.state_dict())
    rule = copy.deepcopy(session.rule.state_dict())
    devices = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices), modes_kept(session.model):
        try:
            yield
        finally:
            session.rule.zero_grad()
            session.model.load_state_dict(model)
            session.rule.load_state_dict(rule)
