"""What a run steps: an optimizer, or several, under one schedule."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.learning_rates import factor
from thor_bench.optimizers.peer import Takes, Training
from thor_bench.optimizers.registry import find_optimizer
from thor_bench.optimizers.settings import Settings, from_values
from thor_bench.records.config import RunConfig
from thor_bench.records.records import DecisionRecord, StatisticsRecord
from thor_bench.tasks import Likelihood, find_task
from torch_thor import KFAC, THOR


@dataclass(frozen=True)
class TrainingRule:
    """Optimizers that step together, each under the same schedule; or one that takes closures.

    Attributes:
        optimizers: The optimizers.
        schedulers: Their schedules; none of what finds the length of its steps by itself.
        takes: What a step takes.
    """

    optimizers: tuple[Optimizer, ...]
    schedulers: tuple[LambdaLR, ...]
    takes: Takes = Takes.GRADIENTS

    @property
    def lr(self) -> float | None:
        """Learning rate of the first group, for records; None where there is none."""
        return float(self.optimizers[0].param_groups[0]["lr"]) if self.schedulers else None

    def decisions(self) -> Iterator[DecisionRecord]:
        """Yields what the latest step's trace rule decided, layer by layer."""
        for optimizer in self.optimizers:
            if not isinstance(optimizer, THOR | KFAC) or not optimizer.last_decisions:
                continue
            norms = optimizer.factor_norms()
            for made in optimizer.last_decisions:
                yield DecisionRecord(
                    layer=made.layer,
                    step=made.step,
                    decision=made.decision.name.lower(),
                    change=_finite(made.change),
                    norm=norms[made.layer],
                )

    def statistics(self, step: int) -> Iterator[StatisticsRecord]:
        """Yields what is to be seen of each layer's curvature, and of the latest step."""
        for optimizer in self.optimizers:
            if not isinstance(optimizer, THOR | KFAC):
                continue
            for one in optimizer.statistics():
                yield StatisticsRecord(
                    layer=one.name,
                    step=step,
                    size=one.size,
                    age=_finite(one.age),
                    change=_finite(one.change),
                    rank_a=_finite(one.rank_a),
                    rank_g=_finite(one.rank_g),
                    condition_a=_finite(one.condition_a),
                    condition_g=_finite(one.condition_g),
                    ratio=_finite(one.step),
                    turned=_finite(one.turned),
                    failures=int(one.failures),
                )

    @property
    def samples_fisher(self) -> bool:
        """Whether an optimizer wants statistics of drawn labels."""
        return any(_samples_fisher(optimizer) for optimizer in self.optimizers)

    def sample_fisher(self, outputs: Tensor, likelihood: Likelihood) -> None:
        """Collects statistics of drawn labels where an optimizer wants those; before backward."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, THOR) and _samples_fisher(optimizer):
                optimizer.sample_fisher(outputs, likelihood)

    def zero_grad(self) -> None:
        """Clears all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Steps every optimizer, then moves every schedule on."""
        for optimizer in self.optimizers:
            optimizer.step()
        for scheduler in self.schedulers:
            scheduler.step()

    def search(self, closure: Callable[[], Any]) -> Tensor:
        """Takes the step of an optimizer that calls a closure again and again; the loss before."""
        (optimizer,) = self.optimizers
        loss: Tensor = optimizer.step(closure)  # type: ignore[assignment] # torch says float
        return loss

    def evaluation(self) -> None:
        """Puts the weights that are evaluated in place, where they are not those that train."""
        self._switch("eval")

    def training(self) -> None:
        """Puts the weights that train back."""
        self._switch("train")

    def _switch(self, mode: Literal["eval", "train"]) -> None:
        """Tells the optimizers that train other weights than they evaluate (schedule-free)."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all parts."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of a rule that was built alike."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _samples_fisher(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, THOR) and optimizer.engine.options.statistics.fisher == "mc"


def build_rule(model: nn.Module, config: RunConfig, steps_per_epoch: int) -> TrainingRule:
    """Builds the optimizer of a run, with its schedule, over every parameter of a model.

    Raises:
        BenchError: The optimizer refuses a setting.
    """
    peer = find_optimizer(config.optimizer)
    settings = from_values(type(peer.settings), config.settings)
    task = find_task(config.workload)
    training = Training(model, steps_per_epoch, task.loss_reduction, task.exclude)
    try:
        optimizers = tuple(peer.build(training, settings))
    except (TypeError, ValueError) as error:
        raise BenchError(f"--optimizer {config.optimizer}: {reason(error)}") from error
    if not isinstance(settings, Settings):
        return TrainingRule(optimizers, (), peer.takes)
    rate = factor(settings, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
    schedulers = tuple(LambdaLR(optimizer, rate) for optimizer in optimizers)
    return TrainingRule(optimizers, schedulers, peer.takes)
