"""What ranks do in the tests of agreement, failure and traffic; it runs in processes of its own."""

from __future__ import annotations

import copy
import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_parallel import CASES, batches_of, model_of
from helpers import mean_half_square, mlp
from torch_thor import THOR, Distributed, Statistics
from torch_thor.distributed.inversion import Profile
from uneven_ranks import EVERY_STEP, Uneven, ended

if TYPE_CHECKING:
    from collections.abc import Callable


def message_of(build: Callable[[], object]) -> str:
    """What kind of error a call raises, and what it says."""
    try:
        build()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _always(step: int) -> float:  # noqa: ARG001 (a schedule)
    return 1.0


def _seldom(step: int) -> float:  # noqa: ARG001 (a schedule)
    return 50.0


def mismatches() -> dict[str, str]:
    """Each rank builds something else; what every rank is told."""
    rank = dist.get_rank()
    wide, model = mlp(6 + rank), mlp()
    frozen = mlp()
    frozen[0].weight.requires_grad_(rank == 0)
    return {
        "shapes": message_of(lambda: THOR(wide, norm_control="graft")),
        "frozen": message_of(lambda: THOR(frozen, norm_control="graft")),
        "damping": message_of(lambda: THOR(model, norm_control="graft", damping=0.1 + rank)),
        "intervals": message_of(
            lambda: THOR(model, norm_control="graft", interval=(_always, _seldom)[rank])
        ),
        "learning rate": message_of(lambda: THOR(model, norm_control="graft", lr=0.1 + rank)),
        "groups": message_of(
            lambda: THOR(model, list(model.parameters())[rank:], norm_control="graft")
        ),
        "same": message_of(
            lambda: THOR(model, norm_control="graft", lr=lambda step: 0.1 / (step + 1))
        ),
    }


def different_layers() -> str:
    """Rank 0 freezes a layer in the middle of the run, rank 1 does not."""
    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)), nn.Linear(5, 3))
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    _one_step(model, optimizer)
    model[0].weight.requires_grad_(dist.get_rank() != 0)
    return message_of(lambda: _steps(model, optimizer, 3))


def _steps(model: nn.Module, optimizer: Any, count: int) -> None:
    for _ in range(count):
        _one_step(model, optimizer)


def _one_step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    mean_half_square(model(torch.ones(4, 5)), torch.ones(4, 3)).backward()
    optimizer.step()


def a_rank_that_stays_away(seconds: float) -> str:
    """Rank 1 takes no step before rank 0 has given up."""
    model, word = mlp(), torch.zeros(1)
    aside: Any = dist.new_group()  # connections that the failure leaves alone
    dist.barrier()
    optimizer = THOR(
        model, norm_control="graft", **EVERY_STEP, distributed=Distributed(timeout=seconds)
    )
    if dist.get_rank() == 1:
        dist.recv(word, src=0, group=aside)
        return "away"
    message = message_of(lambda: _one_step(model, optimizer))
    dist.send(word, dst=1, group=aside)
    return message


def a_rank_that_dies() -> str:
    """Rank 1 is killed in the middle of a run."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    _one_step(model, optimizer)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return message_of(lambda: _one_step(model, optimizer))


def built_too_early(store: str) -> str:
    """The optimizer is built before the process group."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    model = mlp()
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    return message_of(lambda: _one_step(model, optimizer))


def groups_of_one() -> list[str]:
    """Each rank trains a model of its own, in a group of its own; and one in no group."""
    rank = dist.get_rank()
    groups: list[Any] = [dist.new_group([0]), dist.new_group([1])]
    model = mlp(5 + rank)
    optimizer = THOR(
        model, norm_control="graft", **EVERY_STEP, distributed=Distributed(group=groups[rank])
    )
    other = Distributed(group=groups[1 - rank])  # what torch gives those who are outside
    return [
        message_of(lambda: _one_step(model, optimizer)),
        message_of(lambda: THOR(model, norm_control="graft", distributed=other)),
        type(optimizer.engine.communicator).__name__,
    ]


def resumed(steps: int) -> tuple[Uneven, Uneven]:
    """A run, and the same run saved by rank 0 in the middle and loaded by all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    case = CASES["trace rule"]
    batches = batches_of(case, 2 * steps)

    def go_on(model: nn.Module, optimizer: Any, part: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in part:
            optimizer.zero_grad()
            mean_half_square(model(x[rank::size]), y[rank::size]).backward()
            optimizer.step()

    options = case.options | {"distributed": Distributed(reduce_gradients=True, inversion="owners")}
    model = model_of(case)
    optimizer = case.optimizer(model, **options)
    go_on(model, optimizer, batches[:steps])
    saved: list[Any] = [None]
    if rank == 0:
        saved = [copy.deepcopy((model.state_dict(), optimizer.state_dict()))]
    go_on(model, optimizer, batches[steps:])
    dist.broadcast_object_list(saved, src=0)
    twin = model_of(case)
    heir = case.optimizer(twin, **options)
    twin.load_state_dict(saved[0][0])
    heir.load_state_dict(saved[0][1])
    go_on(twin, heir, batches[steps:])
    return ended(model, optimizer), ended(twin, heir)


def profile_and_log() -> list[str]:
    """What ``inversion="auto"`` says: as measured, with a free network, and with a dear one."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch_thor")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 3))
    optimizer = THOR(model, norm_control="graft", **EVERY_STEP, split=None)
    inverter = optimizer.engine.communicator._inverter  # type: ignore[attr-defined]
    free, dear = Profile((1.0, 1.0, 1.0), 0.0, 0.0), Profile((1.0, 1.0, 1.0), 1e9, 0.0)
    for network in (None, free, dear):
        inverter._profile = network
        optimizer.zero_grad()
        mean_half_square(model(torch.randn(64, 40)), torch.ones(64, 3)).backward()
        optimizer.step()
    logger.removeHandler(handler)
    return lines


@dataclass(frozen=True)
class Sent:
    """Bytes of one refresh of all layers of ResNet-50, and of its gradients."""

    factors: int
    gradients: int


def resnet_bytes() -> list[Sent]:
    """First steps of ResNet-50, blocks of at most 128 rows, in float32 and in bfloat16."""
    from torchvision.models import resnet50  # noqa: PLC0415 (an extra)

    torch.manual_seed(0)
    model = resnet50()
    sent = []
    for wire in (None, torch.bfloat16):
        optimizer = THOR(
            model,
            norm_control="graft",
            split=128,
            power=1.0,
            statistics=Statistics(rows=8),
            distributed=Distributed(wire=wire, inversion="replicate"),
        )
        traffic = optimizer.engine.communicator.traffic
        before = traffic.bytes
        outputs = model(torch.randn(2, 3, 32, 32))
        nn.functional.cross_entropy(outputs, torch.tensor([1, 2])).backward()
        optimizer.step()
        optimizer.remove()
        sent.append(Sent(traffic.bytes - before, sum(4 * p.numel() for p in model.parameters())))
    return sent
