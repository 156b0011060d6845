"""What ranks do in the tests of sharded training; it runs in processes of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from helpers import mean_half_square
from torch_thor import (
    EKFAC,
    THOR,
    Base,
    Damping,
    InvalidOptionError,
    LayerDecision,
    MemoryReport,
    NormControl,
    Statistics,
    TraceRule,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WORKS_HERE = hasattr(torch.cpu.Stream, "record_event")  # torch 2.6 shards on GPUs only
STEPS = 30
SAMPLES = 16
_ROWS = NormControl("graft", per="rows")


def network() -> nn.Sequential:
    """Convolutions, a norm and linear layers whose rows split into 2 and 4 shards."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.Tanh(),
        nn.Linear(16, 8),
    )


def uneven_network() -> nn.Sequential:
    """7 and 5 rows: the last ranks hold fewer, or none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))


@dataclass(frozen=True)
class Case:
    """A model and an optimizer.

    Args:
        build: Makes the model; evaluation mode, so that BatchNorm sees no batch.
        shape: Of one sample.
        outputs: Columns of the targets.
        options: THOR's.
        replicas: Rows of a mesh of replicas and shards.
    """

    build: Callable[[], nn.Sequential] = network
    shape: tuple[int, ...] = (2, 6, 6)
    outputs: int = 8
    options: dict[str, Any] = field(default_factory=dict)
    replicas: int = 1

    def optimizer(self, model: nn.Module) -> THOR:
        defaults: dict[str, Any] = {"lr": 0.05, "interval": 4, "split": 2, "norm_control": _ROWS}
        return THOR(model, **(defaults | {"statistics": Statistics(rows=None)} | self.options))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, *self.shape, generator=generator, dtype=torch.float64)
        targets = torch.randn(SAMPLES, self.outputs, generator=generator, dtype=torch.float64)
        return inputs, targets

    def shard(self, model: nn.Sequential) -> nn.Sequential:
        """Shards single layers and what is left over, as users do."""
        size = dist.get_world_size()
        mesh = init_device_mesh("cpu", (size,))
        if self.replicas > 1:
            names = ("replicas", "shards")
            mesh = init_device_mesh(
                "cpu", (self.replicas, size // self.replicas), mesh_dim_names=names
            )
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model


def odd_network() -> nn.Sequential:
    """7 rows in blocks of 2: the last rank's last block holds one row of the layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 7))


_FIRST: dict[str, Any] = {"update": Update(momentum_first=False)}
CASES: dict[str, Case] = {
    "thor": Case(),
    "momentum last": Case(options=_FIRST | {"norm_control": None, "damping": Damping(0.1, "both")}),
    "rms, adamw beside": Case(
        options={"norm_control": NormControl("rms", per="rows"), "lr": 0.01, "base": Base("adamw")}
    ),
    "rows that don't divide": Case(
        uneven_network, (6,), 5, {"split": 1, "norm_control": _ROWS, "power": 1.0}
    ),
    "replicas of shards": Case(replicas=2),
    "trace rule": Case(
        options={"trace_rule": TraceRule(0.01, 0.0), "damping": Damping(0.1, "both")}
    ),
    "distance rule": Case(options={"trace_rule": TraceRule(0.9, 0.0, compare="distance")}),
    "distance rule, rows that don't divide": Case(
        uneven_network,
        (6,),
        5,
        {"split": 1, "trace_rule": TraceRule(0.9, 0.0, compare="distance")},
    ),
    "rms, rows that don't divide": Case(
        odd_network,
        (6,),
        7,
        {"norm_control": NormControl("rms", per="rows"), "lr": 0.01, "base": "sgd"},
    ),
}


@dataclass
class Result:
    """What one rank found.

    Args:
        weights: All parameters, whole.
        shapes: Shapes of the blocks of G that this rank keeps.
        messages: Collectives of the curvature in each step.
        refreshing: Steps that refreshed a layer.
        decisions: What was decided of each layer, in order.
        memory: What curvature and momentum take, before the first step and after the last.
    """

    weights: list[Tensor]
    shapes: list[tuple[int, ...]]
    messages: list[int] = field(default_factory=list)
    refreshing: set[int] = field(default_factory=set)
    decisions: list[LayerDecision] = field(default_factory=list)
    memory: list[MemoryReport] = field(default_factory=list)


def whole(model: nn.Module) -> list[Tensor]:
    """Every parameter with all its rows."""
    return [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for p in model.parameters()
    ]


def step(case: Case, model: nn.Module, optimizer: THOR, number: int) -> float:
    """Trains on this rank's share of a batch, and returns its loss."""
    inputs, targets = case.batch(number)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = slice(rank * SAMPLES // size, (rank + 1) * SAMPLES // size)
    optimizer.zero_grad()
    loss = mean_half_square(model(inputs[share]), targets[share])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(case: Case, *, shard: bool = True) -> Result:
    """Trains for ``STEPS`` steps."""
    model = case.build().double().eval()
    if shard:
        case.shard(model)
    optimizer = case.optimizer(model)
    result = Result([], [])
    result.memory.append(optimizer.memory())
    for number in range(STEPS):
        before = optimizer.engine.communicator.traffic.messages
        step(case, model, optimizer, number)
        after = optimizer.engine.communicator.traffic.messages
        result.messages.append(after - before)
        result.refreshing |= {decision.step for decision in optimizer.last_decisions}
        result.decisions += optimizer.last_decisions
    result.memory.append(optimizer.memory())
    result.weights = whole(model)
    result.shapes = [tuple(s.g.blocks.shape) for s in optimizer.engine.stacks]
    return result


def train_all() -> dict[str, Result]:
    """Every case that this world can hold."""
    fitting = {n: c for n, c in CASES.items() if dist.get_world_size() > c.replicas}
    return {name: train(case) for name, case in fitting.items()}


def save(folder: str) -> list[Tensor]:
    """Trains for 6 steps, saves, goes on for 4."""
    case = CASES["thor"]
    model = case.shard(case.build().double().eval())
    optimizer = case.optimizer(model)
    for number in range(6):
        step(case, model, optimizer, number)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=folder)  # type: ignore[attr-defined] # torch leaves it out of __all__
    for number in range(6, 10):
        step(case, model, optimizer, number)
    return whole(model)


def load(folder: str) -> list[Tensor]:
    """Loads into a new model of this world, and goes on for 4 steps."""
    case = CASES["thor"]
    model = case.build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    case.shard(model)
    optimizer = case.optimizer(model)
    optimizer.allocate()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=folder)  # type: ignore[attr-defined] # likewise
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for number in range(6, 10):
        step(case, model, optimizer, number)
    return whole(model)


def one_bad_shard() -> list[list[Tensor]]:
    """A gradient that is not finite in rank 1's shard only, in a refreshing step and in another."""
    case = CASES["thor"]
    model = case.shard(case.build().double().eval())
    optimizer = case.optimizer(model)
    seen = []
    for number in range(10):
        inputs, targets = case.batch(number)
        optimizer.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        if number in (5, 8) and dist.get_rank() == 1:
            gradient = model[5].weight.grad
            assert isinstance(gradient, DTensor)
            gradient.to_local().fill_(torch.nan)
        optimizer.step()
        seen.append(whole(model))
    return seen


def by_default(folder: str) -> dict[str, Any]:
    """Trains with THOR's own options, saves after 20 steps, and lets a new optimizer go on."""
    case = CASES["thor"]
    model = case.shard(case.build().double().eval())
    optimizer, losses, messages = THOR(model), [], []
    for number in range(STEPS):
        if number == 20:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            dcp.save(state, checkpoint_id=folder)  # type: ignore[attr-defined] # likewise
        before = optimizer.traffic.messages
        losses.append(step(case, model, optimizer, 0))
        if not optimizer.last_decisions:
            messages.append(optimizer.traffic.messages - before)
    left = [one.name for one in optimizer.coverage() if one.reason == "output layer"]
    trained = whole(model)
    model = case.shard(case.build().double().eval())
    other = THOR(model)
    mean_half_square(model(case.batch(0)[0]), case.batch(0)[1]).backward()
    other.allocate()
    state = {"model": model.state_dict(), "optimizer": other.state_dict()}
    dcp.load(state, checkpoint_id=folder)  # type: ignore[attr-defined] # likewise
    model.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    for _ in range(20, STEPS):
        step(case, model, other, 0)
    found = {"losses": losses, "messages": messages, "left": left, "weights": trained}
    return found | {"resumed": whole(model)}


def refusals() -> dict[str, str]:
    """What the optimizers say to what can't be sharded."""
    said = {}
    attempts: dict[str, Callable[[nn.Module], object]] = {
        "ekfac": lambda model: EKFAC(model, lr=0.1),
        "kl_clip": lambda model: THOR(model, lr=0.1, norm_control="kl_clip"),
        "per layer": lambda m: THOR(m, lr=0.1, norm_control=NormControl("graft", per="layer")),
    }
    for name, attempt in attempts.items():
        try:
            attempt(CASES["thor"].shard(network()))
        except InvalidOptionError as error:
            said[name] = str(error)
    model = nn.Sequential(
        nn.Embedding(8, 4),
        nn.ConvTranspose1d(4, 6, 3),
        nn.Conv1d(6, 8, 1, groups=2),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    )
    fully_shard(model)
    for entry in THOR(model, lr=0.1, include=(nn.Embedding,)).coverage():
        said[entry.name] = entry.reason
    return said


def everything(folder: str) -> dict[str, Any]:
    """All of it in one start of the processes."""
    return {
        "trained": train_all(),
        "saved": save(str(Path(folder) / f"of-{dist.get_world_size()}")),
        "bad": one_bad_shard(),
        "said": refusals(),
        "default": by_default(str(Path(folder) / f"default-of-{dist.get_world_size()}")),
    }


def load_all(folder: str) -> dict[str, list[Tensor]]:
    """Loads what worlds of 2 and of 4 saved."""
    return {name: load(str(Path(folder) / name)) for name in ("of-2", "of-4")}


def alone(name: str) -> Result:
    """The same case in this process, undistributed."""
    return train(copy.deepcopy(CASES[name]), shard=False)
