"""What ranks do whose parameters change in the middle of a run; it runs in processes of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from disagreeing_ranks import message_of
from torch_thor import THOR, Distributed

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Run:
    """Three layers whose gradients the optimizer averages, and what came of their steps.

    Args:
        model: The layers; curvature is beside the point.
        spare: A parameter that may be added as a group.
        said: What each step said.
        messages: Collectives of each step.
        weights: All parameters after each step.
    """

    model: nn.Sequential = field(
        default_factory=lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    )
    spare: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.ones(5)))
    said: list[str] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Builds the optimizer."""
        sharing = Distributed(reduce_gradients=True)
        self.optimizer = THOR(
            self.model, norm_control="graft", lr=0.1, exclude=("*",), distributed=sharing
        )

    def step(self) -> None:
        """Steps along gradients that differ between ranks."""
        traffic = self.optimizer.engine.communicator.traffic
        before = traffic.messages
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            parameter.grad = None
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1.0 + dist.get_rank())
        self.said.append(message_of(self.optimizer.step))
        self.messages.append(traffic.messages - before)
        self.weights.append([p.detach().clone() for p in self.model.parameters()])


def _freeze(run: Run) -> None:
    run.model[1].requires_grad_(False)


def _thaw(run: Run) -> None:
    run.model[1].requires_grad_(True)


def _freeze_bias(run: Run) -> None:
    assert isinstance(run.model[1], nn.Linear)
    run.model[1].bias.requires_grad_(False)


def _freeze_all(run: Run) -> None:
    run.model.requires_grad_(False)


def _thaw_all(run: Run) -> None:
    run.model.requires_grad_(True)


def _add_group(run: Run) -> None:
    run.optimizer.add_param_group({"params": [run.spare]})


def _drop_group(run: Run) -> None:
    run.optimizer.param_groups[1:] = []


def _widen(run: Run) -> None:
    run.model[2].double()


def _narrow(run: Run) -> None:
    run.model[2].float()


def _nothing(run: Run) -> None:
    pass


# What happens before the first step on all ranks, then on the last one, and what undoes that.
CHANGES: dict[str, tuple[Callable[[Run], None], Callable[[Run], None], Callable[[Run], None]]] = {
    "frozen": (_nothing, _freeze, _thaw),
    "a frozen bias": (_nothing, _freeze_bias, _thaw),
    "thawed": (_freeze, _thaw, _freeze),
    "all frozen": (_nothing, _freeze_all, _thaw_all),
    "all thawed": (_freeze_all, _thaw_all, _freeze_all),
    "a group added": (_nothing, _add_group, _drop_group),
    "another type": (_nothing, _widen, _narrow),
}


def changed_on_the_last_rank(*, first: bool) -> dict[str, Run]:
    """One rank changes before the second step (or the ``first``), steps, and takes it back."""
    last = dist.get_rank() == dist.get_world_size() - 1
    runs = {}
    for name, (prepare, change, undo) in CHANGES.items():
        torch.manual_seed(0)
        run = runs[name] = Run()
        prepare(run)
        if not first:
            run.step()
        if last:
            change(run)
        run.step()
        if last:
            undo(run)
        run.step()
        run.step()
    return {name: _plain(run) for name, run in runs.items()}


def changed_on_all_ranks() -> dict[str, Run]:
    """All ranks change before the second step."""
    runs = {}
    for name, (prepare, change, _) in CHANGES.items():
        torch.manual_seed(0)
        run = runs[name] = Run()
        prepare(run)
        run.step()
        change(run)
        for _ in range(3):
            run.step()
    return {name: _plain(run) for name, run in runs.items()}


def without_gradients_on_one_rank() -> list[Tensor]:
    """Rank 1 has none at all in the second step, nobody has one of the last layer."""
    torch.manual_seed(0)
    run = Run()
    run.step()
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter) if dist.get_rank() == 0 else None
    for parameter in run.model[2].parameters():
        parameter.grad = None
    run.optimizer.step()
    return [torch.tensor([]) if p.grad is None else p.grad for p in run.model.parameters()]


def _plain(run: Run) -> Run:
    """What can be sent."""
    del run.optimizer
    return run
