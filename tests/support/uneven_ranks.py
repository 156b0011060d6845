"""What ranks with odd batches do in the tests; it runs in processes of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from data_parallel import ALL_ROWS, CASES, batches_of
from helpers import convnet, mean_half_square, mlp
from torch_thor import THOR, Distributed, Refresh


@dataclass
class Uneven:
    """How a run with odd batches ended.

    Args:
        weights: Parameters.
        state: The optimizer's state.
        factors: (A, G) blocks and traces of all layers.
        steps: Steps that the curvature counted.
    """

    weights: list[Tensor]
    state: dict[str, Any]
    factors: list[Tensor]
    steps: int


def ended(model: nn.Module, optimizer: Any) -> Uneven:
    engine = optimizer.engine
    factors = [t.clone() for s in engine.stacks for f in (s.a, s.g) for t in (f.blocks, f.traces)]
    state = copy.deepcopy(optimizer.state_dict())
    return Uneven([p.detach().clone() for p in model.parameters()], state, factors, engine.steps)


class TwoHeads(nn.Module):
    """[N, 5] → [N, 3] through one of two heads; the other one gets no gradient."""

    def __init__(self) -> None:
        """Draws the weights."""
        super().__init__()
        self.body = nn.Linear(5, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor, head: int) -> Tensor:
        """Takes one head."""
        outputs: Tensor = self.heads[head](torch.tanh(self.body(x)))
        return outputs


EVERY_STEP: dict[str, Any] = {
    "lr": 0.05,
    "interval": 1,
    "statistics": ALL_ROWS,
    "refresh": Refresh(stagger=False),
}


def an_empty_batch() -> Uneven:
    """Case 39: rank 0 has no sample at all in the first step and in every third one."""
    torch.manual_seed(3)
    model = mlp().double()
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    for step, (x, y) in enumerate(batches_of(CASES["thor"], 7)):
        none = dist.get_rank() == 0 and step % 3 == 0
        optimizer.zero_grad()
        outputs = wrapped(x[:0] if none else x)
        (outputs.sum() if none else mean_half_square(outputs, y)).backward()
        optimizer.step()
    return ended(model, optimizer)


def unused_layers(*, turns: bool) -> Uneven:
    """Case 39: each rank uses one head, if ``turns``; else nobody uses the second one at last."""
    torch.manual_seed(3)
    model = TwoHeads().double()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    for step, (x, y) in enumerate(batches_of(CASES["thor"], 6)):
        optimizer.zero_grad()
        mean_half_square(wrapped(x, dist.get_rank() if turns or step < 3 else 0), y).backward()
        optimizer.step()
    return ended(model, optimizer)


def early_end(*, wrapped: bool) -> Uneven:
    """Rank r takes 5 + 2 r steps, under ``Join``."""
    torch.manual_seed(3)
    model = mlp().double()
    outer = DistributedDataParallel(model) if wrapped else model
    optimizer = THOR(
        model,
        norm_control="graft",
        **EVERY_STEP,
        distributed=Distributed(reduce_gradients=not wrapped),
    )
    batches = batches_of(CASES["thor"], 5 + 2 * dist.get_rank())
    joinables: list[Any] = [outer, optimizer] if wrapped else [optimizer]
    with Join(joinables):
        for x, y in batches:
            optimizer.zero_grad()
            mean_half_square(outer(x), y).backward()
            optimizer.step()
    # And on together: what was missed has been taken over.
    for x, y in batches_of(CASES["thor"], 2):
        optimizer.zero_grad()
        mean_half_square(outer(x), y).backward()
        optimizer.step()
    return ended(model, optimizer)


def not_finite() -> Uneven:
    """One rank's loss is infinite in one step; DDP spreads that, so all skip it."""
    torch.manual_seed(3)
    model = mlp().double()
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    for step, (x, y) in enumerate(batches_of(CASES["thor"], 4)):
        optimizer.zero_grad()
        loss = mean_half_square(wrapped(x), y)
        (loss * torch.inf if step == 2 and dist.get_rank() == 1 else loss).backward()
        optimizer.step()
    return ended(model, optimizer)


def bad_statistics() -> Uneven:
    """A rank's statistics are not finite though the gradients are; no rank folds them in."""
    torch.manual_seed(3)
    model = nn.Linear(5, 3).double()
    optimizer = THOR(
        model, norm_control="graft", **EVERY_STEP, distributed=Distributed(reduce_gradients=True)
    )
    for step, (x, y) in enumerate(batches_of(CASES["thor"], 3)):
        optimizer.zero_grad()
        huge = 1e155 if step == 1 and dist.get_rank() == 1 else 1.0  # its square overflows
        (mean_half_square(model(x * huge), y * huge) * huge**-2).backward()
        optimizer.step()
    return ended(model, optimizer)


def channels_last() -> Uneven:
    """Case 41: weights and gradients that are not contiguous, without DDP."""
    torch.manual_seed(3)
    model = convnet().double().to(memory_format=torch.channels_last)
    optimizer = THOR(
        model, norm_control="graft", **EVERY_STEP, distributed=Distributed(reduce_gradients=True)
    )
    for x, y in batches_of(CASES["trace rule"], 4):
        optimizer.zero_grad()
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        mean_half_square(model(x[mine]), y[mine]).backward()
        optimizer.step()
    return ended(model, optimizer)


def fitted(width: int, batches: list[Tensor], *, lr: float) -> Uneven:
    """A network of two hidden layers by the default's rule: sines of half of the inputs."""
    torch.manual_seed(3)
    inner = (nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    model = nn.Sequential(*inner, nn.Linear(width, 3)).double()
    wrapped = DistributedDataParallel(model)
    optimizer = THOR(model, lr=lr)
    for x in batches:
        optimizer.zero_grad()
        mean_half_square(wrapped(x), x[:, :3].sin()).backward()
        optimizer.step()
    return ended(model, optimizer)


def batches_of_unlike_sizes() -> Uneven:
    """What one rank's first batch pays for does not pay for all rows of the other's layers."""
    samples = (32, 1024)[dist.get_rank()]
    torch.manual_seed(3)
    batches = [torch.randn(samples, 6, dtype=torch.float64) for _ in range(3)]
    return fitted(192, batches, lr=0.03)


def overshooting() -> Uneven:
    """Steps that are too long for a valley without noise; each rank has half of its samples."""
    torch.manual_seed(3)
    own = torch.randn(32, 6, dtype=torch.float64)[dist.get_rank() :: 2]
    return fitted(16, [own] * 222, lr=0.1)


def odd_batches() -> dict[str, Uneven]:
    """All of these, one after the other."""
    return {
        "an empty batch": an_empty_batch(),
        "unused layers": unused_layers(turns=True),
        "a layer that nobody uses": unused_layers(turns=False),
        "early end": early_end(wrapped=True),
        "early end without wrapper": early_end(wrapped=False),
        "not finite": not_finite(),
        "bad statistics": bad_statistics(),
        "channels last": channels_last(),
        "batches of unlike sizes": batches_of_unlike_sizes(),
        "overshooting": overshooting(),
    }
