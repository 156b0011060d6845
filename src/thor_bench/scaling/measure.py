"""Measuring one device: a few steps of a model under each optimizer, and what it would send."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from thor_bench.records.machine import describe_machine
from thor_bench.scaling.model import Messages, Profile, Rule
from thor_bench.scaling.scaled_models import RULES, ScaledModel, build_optimizer
from thor_bench.training.precision import autocast, forward_type
from torch_thor import KFAC, THOR, Intervals

# Of four steps one updates factors and inverses, one factors alone, two neither.
_CYCLE = Intervals(2, 4)


@dataclass(frozen=True)
class _Step:
    """Seconds of the parts of a step, and what it did besides training."""

    forward: float
    backward: float
    update: float
    refreshed: Literal["nothing", "factors", "factors and inverses"]

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


class Trainer:
    """A model, its optimizer and one batch, stepped and timed.

    Attributes:
        model: The model, without DistributedDataParallel, which it is called through among many.
        optimizer: Its optimizer.
        curved: The same where it has curvature, else None.
    """

    def __init__(
        self,
        task: ScaledModel,
        name: str,
        intervals: Intervals,
        device: torch.device,
        *,
        many: bool,
    ) -> None:
        torch.manual_seed(0)
        self._task, self._device = task, device
        self.model = task.build_model().to(device).to(memory_format=task.memory_format)
        self._called: nn.Module = DistributedDataParallel(self.model) if many else self.model
        self.optimizer = build_optimizer(name, self.model, task, intervals)
        self.curved = self.optimizer if isinstance(self.optimizer, THOR | KFAC) else None
        inputs, targets = task.draw(task.batch)
        if inputs.dim() == 4:
            inputs = inputs.to(memory_format=task.memory_format)
        self._inputs, self._targets = inputs.to(device), targets.to(device)

    def step(self) -> _Step:
        """Trains one step."""
        factors = self.curved is not None and self.curved.wants_statistics
        begun = self._now()
        self.optimizer.zero_grad()
        with autocast(self._task.autocast, self._device):
            loss = self._task.loss(self._called(self._inputs), self._targets)
        forward = self._now()
        loss.backward()
        backward = self._now()
        self.optimizer.step()
        seconds = forward - begun, backward - forward, self._now() - backward
        if self.curved is not None and self.curved.last_decisions:
            return _Step(*seconds, "factors and inverses")
        return _Step(*seconds, "factors" if factors else "nothing")

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def count_messages(model: nn.Module, optimizer: Optimizer) -> Messages:
    """Counts what a rank sends, from gradients and blocks, once the optimizer has refreshed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    if not isinstance(optimizer, THOR | KFAC):
        return Messages(gradients=gradients)
    triangles = inverses = work = largest = 0
    entries = 2  # the check that all ranks are at one step
    for stack in optimizer.engine.stacks:
        entries += len(stack.layers) * 3 * (stack.geometry.matrices + 1)
        for factor in (stack.a, stack.g):
            *counts, size, _ = factor.blocks.shape
            blocks, width = torch.Size(counts).numel(), factor.blocks.element_size()
            triangle = size * (size + 1) // 2
            triangles += blocks * triangle * width
            inverses += blocks * (triangle + 1) * width
            work += blocks * size**3
            largest = max(largest, size**3)
    return Messages(
        gradients=gradients,
        statistics=triangles,
        traces=8 * entries,
        inverses=inverses,
        largest_block=largest / work,
    )


def _measure_rule(
    task: ScaledModel, name: str, device: torch.device, cycles: int
) -> tuple[Rule, list[_Step]]:
    """Measures an optimizer over whole cycles, but for the first step; returns plain steps too."""
    trainer = Trainer(task, name, _CYCLE, device, many=False)
    trainer.step()
    refreshes = trainer.curved is not None
    steps = [trainer.step() for _ in range((4 if refreshes else 2) * cycles)]
    plain = [step for step in steps if step.refreshed == "nothing"]
    without = factors = both = min(step.total for step in plain)
    if refreshes:
        factors = min(step.total for step in steps if step.refreshed == "factors")
        both = min(step.total for step in steps if step.refreshed == "factors and inverses")
    rule = Rule(
        name=name,
        update=min(step.update for step in plain),
        statistics=max(factors - without, 0.0),
        inversion=max(both - factors, 0.0),
        messages=count_messages(trainer.model, trainer.optimizer),
    )
    return rule, plain


def measure_profile(
    task: ScaledModel,
    device: torch.device,
    *,
    cycles: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measures forward, backward and each optimizer of a task: the fastest step of each kind.

    What other processes take away only ever makes a step longer, so the minimum is what is meant.
    Each optimizer trains for some cycles, of two plain steps and a refresh of each kind.
    """
    rules, steps = [], []
    for name in RULES:
        tell(f"{task.name}: forward, backward, {name}")
        rule, plain = _measure_rule(task, name, device, cycles)
        rules.append(rule)
        steps += plain
    with torch.device("meta"):
        parameters = sum(p.numel() for p in task.build_model().parameters())
    dtype = str(forward_type(task.autocast, device) or torch.float32).removeprefix("torch.")
    return Profile(
        workload=task.name,
        device=str(describe_machine(device)),
        batch=task.batch,
        parameters=parameters,
        forward=min(step.forward for step in steps),
        backward=min(step.backward for step in steps),
        rules=tuple(rules),
        note=(
            f"fastest of {len(steps)} plain steps and of {cycles} refreshes of each kind; "
            f"random data, {dtype}; K-FAC: all rows, whole factors; "
            f"THOR: 1024 rows a layer, split {task.split}"
        ),
    )
