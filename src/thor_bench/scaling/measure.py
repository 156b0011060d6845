"""Measuring one device: a few steps of a model under each optimizer, and what it would send."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from thor_bench.errors import BenchError, reason
from thor_bench.records.disk import written_whole
from thor_bench.records.machine import describe_machine
from thor_bench.scaling.model import Messages, Profile, Rule
from thor_bench.scaling.tasks import CURVED, Task, build_optimizer
from thor_bench.tasks.data import Batch
from thor_bench.training.precision import autocast, forward_type
from torch_thor import KFAC, THOR, Distributed, Intervals

# Of four steps one updates factors and inverses, one factors alone, two neither.
_FACTORS, _INVERSES = 2.0, 4.0
_USUAL = Distributed()
_ADAPTER = TypeAdapter(Profile)


@dataclass(frozen=True)
class _Kind:
    """What a step did besides training."""

    factors: bool
    inverses: bool


@dataclass(frozen=True)
class _Step:
    """Seconds of the parts of a step."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


class Trainer:
    """A model, its optimizer and one batch, stepped and timed.

    Args:
        task: What is trained.
        name: Name of the optimizer.
        intervals: Steps between updates of factors and of inverses.
        device: Where.
        distributed: How ranks share the curvature, where there are several.
        many: Whether the model is wrapped in DistributedDataParallel.
    """

    def __init__(
        self,
        task: Task,
        name: str,
        intervals: Intervals,
        device: torch.device,
        *,
        distributed: Distributed = _USUAL,
        many: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self._task = task
        self._device = device
        self.model = task.build_model().to(device).to(memory_format=task.memory_format)
        self._called: nn.Module = DistributedDataParallel(self.model) if many else self.model
        self.optimizer: Optimizer = build_optimizer(name, self.model, task, intervals, distributed)
        self._batch = self._place(task.draw(task.batch))

    def _place(self, batch: Batch) -> Batch:
        inputs, targets = batch
        if inputs.dim() == 4:
            inputs = inputs.to(memory_format=self._task.memory_format)
        return inputs.to(self._device), targets.to(self._device)

    def step(self) -> _Step:
        """Trains one step."""
        inputs, targets = self._batch
        begun = self._now()
        self.optimizer.zero_grad()
        with autocast(self._task.autocast, self._device):
            loss = self._task.loss(self._called(inputs), targets)
        forward = self._now()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = self._now()
        self.optimizer.step()
        return _Step(forward - begun, backward - forward, self._now() - backward)

    def sorted_step(self) -> tuple[_Kind, _Step]:
        """Trains one step and tells what it did."""
        curved = self.optimizer if isinstance(self.optimizer, THOR | KFAC) else None
        factors = curved is not None and curved.wants_statistics
        step = self.step()
        return _Kind(factors, bool(curved and curved.last_decisions)), step

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def count_messages(model: nn.Module, optimizer: Optimizer) -> Messages:
    """Counts what a rank sends, from the gradients and the blocks that the optimizer really keeps.

    Args:
        model: The model.
        optimizer: Its optimizer, after a step that refreshed.
    """
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
            blocks = torch.Size(counts).numel()
            triangle = size * (size + 1) // 2
            triangles += blocks * triangle * factor.blocks.element_size()
            inverses += blocks * (triangle + 1) * factor.blocks.element_size()
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
    task: Task, name: str, device: torch.device, cycles: int
) -> tuple[Rule, list[_Step]]:
    """Measures K-FAC or THOR over whole cycles of refreshes; the first step is thrown away.

    Returns:
        The optimizer's costs, and its steps without refresh.
    """
    trainer = Trainer(task, name, Intervals(_FACTORS, _INVERSES), device)
    trainer.step()
    steps: dict[_Kind, list[_Step]] = defaultdict(list)
    for _ in range(cycles * int(_INVERSES)):
        kind, step = trainer.sorted_step()
        steps[kind].append(step)
    plain = steps[_Kind(factors=False, inverses=False)]
    without, factors, both = (
        min(step.total for step in steps[kind])
        for kind in (
            _Kind(factors=False, inverses=False),
            _Kind(factors=True, inverses=False),
            _Kind(factors=True, inverses=True),
        )
    )
    rule = Rule(
        name=name,
        update=min(step.update for step in plain),
        statistics=max(factors - without, 0.0),
        inversion=max(both - factors, 0.0),
        messages=count_messages(trainer.model, trainer.optimizer),
    )
    return rule, plain


def measure_profile(
    task: Task,
    device: torch.device,
    *,
    cycles: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measures forward, backward and each optimizer of a task: the fastest step of each kind.

    What other processes take away only ever makes a step longer, so the minimum is what is meant.

    Args:
        task: What is trained.
        device: Where.
        cycles: Refreshes of each kind that are measured, each with two plain steps.
        tell: Receives what is being measured.
    """
    tell(f"{task.name}: forward, backward, sgd")
    trainer = Trainer(task, "sgd", Intervals(1, 1), device)
    trainer.step()
    steps = [trainer.step() for _ in range(2 * cycles)]
    parameters = sum(p.numel() for p in trainer.model.parameters())
    update = min(step.update for step in steps)
    sent = count_messages(trainer.model, trainer.optimizer)
    rules = [Rule(name="sgd", update=update, statistics=0.0, inversion=0.0, messages=sent)]
    del trainer
    for name in CURVED:
        tell(f"{task.name}: {name}")
        rule, plain = _measure_rule(task, name, device, cycles)
        rules.append(rule)
        steps += plain
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


def saved_profile(path: Path) -> Profile | None:
    """Reads a measured profile, or returns None where there is none.

    Raises:
        BenchError: The file is broken.
    """
    if not path.exists():
        return None
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{path} is no readable profile ({reason(error)[:120]})"
        raise BenchError(f"{message}; measure again with --measure") from error


def save_profile(profile: Profile, path: Path) -> None:
    """Writes a profile; the former one stays whole until the new one is on disk."""
    with written_whole(path) as file:
        file.write(_ADAPTER.dump_json(profile, indent=1) + b"\n")
