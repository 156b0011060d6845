"""What ranks do in the tests of data-parallel training; it runs in processes of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helpers import convnet, mean_half_square, mlp
from models import Transformer, included
from torch_thor import EKFAC, KFAC, THOR, Damping, Distributed, Statistics, TraceRule

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 50
SAMPLES = 16
ALL_ROWS = Statistics(rows=None)


@dataclass(frozen=True)
class Case:
    """A model, an optimizer, and how the samples of a step are shared out.

    Args:
        build: Makes the model.
        optimizer: Makes the optimizer.
        options: Its arguments.
        distributed: The same for all worlds; the reference goes without.
        dtype: Type of model and data.
        micro: Micro-batches of a step.
        uneven: Rank r takes r more samples than an even share, the last one what is left.
        wrapped: Whether DistributedDataParallel averages the gradients.
    """

    build: Callable[[], nn.Module] = mlp
    optimizer: Callable[..., Any] = THOR
    options: dict[str, Any] = field(default_factory=dict)
    distributed: Distributed = field(default_factory=Distributed)
    dtype: torch.dtype = torch.float64
    micro: int = 1
    uneven: bool = False
    wrapped: bool = True


def _thor(**options: Any) -> dict[str, Any]:
    return {"lr": 0.05, "interval": 5, "split": 4, "statistics": ALL_ROWS} | options


_KFAC: dict[str, Any] = {
    "lr": 0.05,
    "factor_interval": 2,
    "inverse_interval": 4,
    "statistics": Statistics(decay=0.5, rows=None),
}
_RULE = TraceRule(0.05, 0.001)
CASES: dict[str, Case] = {
    "thor": Case(options=_thor()),
    # Of these two bytes are compared, so that no measured time may choose who inverts.
    "thor in float32": Case(
        options=_thor(norm_control="graft"),
        dtype=torch.float32,
        distributed=Distributed(inversion="replicate"),
    ),
    "trace rule": Case(convnet, options=_thor(trace_rule=_RULE)),
    "transformer": Case(
        Transformer, options=_thor(include=included(Transformer()), power=1.0, norm_control="graft")
    ),
    "micro-batches": Case(convnet, options=_thor(), micro=2),
    "uneven batches": Case(convnet, options=_thor(), uneven=True),
    "sum of losses": Case(
        options=_thor(lr=0.005, statistics=Statistics(rows=None, loss_reduction="sum"))
    ),
    "owners": Case(convnet, options=_thor(), distributed=Distributed(inversion="owners")),
    "without wrapper": Case(
        convnet, options=_thor(), distributed=Distributed(reduce_gradients=True), wrapped=False
    ),
    "kfac": Case(convnet, KFAC, _KFAC),
    "ekfac": Case(convnet, EKFAC, _KFAC | {"damping": Damping(0.1, "both")}),
    # No Transformer: equal eigenvalues leave a basis open, and rounding chooses another one.
    "ekfac, owners": Case(
        convnet,
        EKFAC,
        _KFAC | {"damping": Damping(0.1, "pi")},
        distributed=Distributed(inversion="owners"),
    ),
    "bfloat16 on the wire": Case(
        options=_thor(norm_control="graft"),
        dtype=torch.float32,
        distributed=Distributed(wire=torch.bfloat16, inversion="replicate"),
    ),
}


@dataclass
class Result:
    """How a run ended.

    Args:
        weights: Parameters.
        state: The optimizer's state.
        decisions: Of all steps, (layer, step, verdict, change).
        messages: Collectives of the optimizer, step by step.
        sizes: Their bytes.
    """

    weights: list[Tensor]
    state: dict[str, Any]
    decisions: list[tuple[str, int, str, float]]
    messages: list[int]
    sizes: list[int]


def batches_of(case: Case, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """All samples of every step: the same everywhere."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(steps):
        if case.build is Transformer:
            inputs = torch.randint(11, (SAMPLES, 5), generator=generator)
        else:
            shape = (5,) if case.build is mlp else (2, 6, 6)
            inputs = torch.randn(SAMPLES, *shape, generator=generator).to(case.dtype)
        targets = torch.randn(SAMPLES, 3, generator=generator).to(case.dtype)
        batches.append((inputs, targets))
    return batches


def shares(case: Case, size: int) -> list[slice]:
    """Which samples belong to which rank."""
    even = SAMPLES // size
    counts = [even] * size
    if case.uneven and size > 1:
        counts = [even - 2 + rank % 2 for rank in range(size - 1)]
        counts.append(SAMPLES - sum(counts))
    ends = [sum(counts[: rank + 1]) for rank in range(size)]
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def model_of(case: Case) -> nn.Module:
    torch.manual_seed(3)
    return case.build().to(case.dtype)


def loss_of(case: Case, outputs: Tensor, targets: Tensor) -> Tensor:
    statistics = case.options.get("statistics", ALL_ROWS)
    mean = mean_half_square(outputs, targets)
    return mean * len(outputs) if statistics.loss_reduction == "sum" else mean


def train_share(case: Case) -> Result:
    """One rank's part of a data-parallel run."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model = model_of(case)
    outer = DistributedDataParallel(model) if case.wrapped else model
    optimizer = case.optimizer(model, **case.options, distributed=case.distributed)
    mine = shares(case, size)[rank]
    return _run(case, model, optimizer, lambda step: _backward(case, outer, step, mine))


def _backward(case: Case, model: nn.Module, batch: tuple[Tensor, Tensor], mine: slice) -> None:
    inputs, targets = batch[0][mine], batch[1][mine]
    parts = list(zip(inputs.chunk(case.micro), targets.chunk(case.micro), strict=True))
    for number, (x, y) in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = last  # what no_sync() sets
        (loss_of(case, model(x), y) / len(parts)).backward()


def train_whole(case: Case, size: int) -> Result:
    """The same run in one process: one big batch, and the gradient that DDP makes of it."""
    model = model_of(case)
    optimizer = case.optimizer(model, **case.options)

    def backward(batch: tuple[Tensor, Tensor]) -> None:
        loss_of(case, model(batch[0]), batch[1]).backward()
        _average_over_ranks(case, model, batch, size)

    return _run(case, model, optimizer, backward)


def _average_over_ranks(
    case: Case, model: nn.Module, batch: tuple[Tensor, Tensor], size: int
) -> None:
    """Writes the mean of the ranks' gradients into the gradients, by a copy without hooks."""
    totals = [torch.zeros_like(p) for p in model.parameters()]
    for mine in shares(case, size):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        loss_of(case, twin(batch[0][mine]), batch[1][mine]).backward()
        for total, p in zip(totals, twin.parameters(), strict=True):
            if p.grad is not None:
                total.add_(p.grad, alpha=1 / size)
    for total, p in zip(totals, model.parameters(), strict=True):
        if p.grad is None:
            p.grad = total
        else:
            p.grad.copy_(total)  # in place: another tensor would have no calls


def _run(
    case: Case,
    model: nn.Module,
    optimizer: Any,
    backward: Callable[[tuple[Tensor, Tensor]], None],
) -> Result:
    result = Result([], {}, [], [], [])
    traffic = optimizer.engine.communicator.traffic
    for batch in batches_of(case):
        optimizer.zero_grad()
        backward(batch)
        before = (traffic.messages, traffic.bytes)
        optimizer.step()
        result.messages.append(traffic.messages - before[0])
        result.sizes.append(traffic.bytes - before[1])
        result.decisions += [
            (d.layer, d.step, d.decision.value, d.change) for d in optimizer.last_decisions
        ]
    result.weights = [p.detach().clone() for p in model.parameters()]
    result.state = optimizer.state_dict()
    return result


def train_all(names: tuple[str, ...]) -> dict[str, Result]:
    """Some cases, one after the other."""
    return {name: train_share(CASES[name]) for name in names}
