"""The optimizers that the bench compares, and how each is built for a model."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thor_bench.errors import BenchError, reason, unknown_choice
from thor_bench.optimizers.builders import (
    Training,
    build_adamw,
    build_ekfac,
    build_kfac,
    build_muon,
    build_sgd,
    build_thor,
)
from thor_bench.optimizers.learning_rates import factor
from thor_bench.optimizers.more_peers import (
    ScheduleFreeSettings,
    SINGDSettings,
    build_schedule_free,
    build_singd,
)
from thor_bench.optimizers.peers import (
    LAMBSettings,
    LARSSettings,
    ShampooSettings,
    SOAPSettings,
    build_lamb,
    build_lars,
    build_shampoo,
    build_soap,
)
from thor_bench.optimizers.requirements import lacks_muon
from thor_bench.optimizers.settings import (
    AdamWSettings,
    KFACSettings,
    MuonSettings,
    Settings,
    SGDSettings,
    THORSettings,
    from_values,
)
from thor_bench.optimizers.variants import VARIANTS
from thor_bench.records.config import RunConfig
from thor_bench.records.records import DecisionRecord
from thor_bench.tasks import Likelihood, find_workload
from torch_thor import KFAC, THOR

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class OptimizerSpec(Generic[S]):
    """An optimizer that can be named on the command line.

    Attributes:
        name: Its name.
        description: One line.
        settings: Its settings at their general defaults.
        build: Builds the torch optimizers that together train every parameter of a model.
        own: Setting that a study searches besides those that all have.
        first_order: Whether it uses gradients entry by entry alone, and so may set a target.
        lacks: Says what this installation lacks for it; None where it runs.
    """

    name: str
    description: str
    settings: S
    build: Callable[[Training, S], Sequence[Optimizer]]
    own: str = "damping"
    first_order: bool = False
    lacks: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class TrainingRule:
    """Optimizers that step together, each under the same schedule."""

    optimizers: tuple[Optimizer, ...]
    schedulers: tuple[LambdaLR, ...]

    @property
    def lr(self) -> float:
        """Learning rate of the first group, for records."""
        return float(self.optimizers[0].param_groups[0]["lr"])

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
                    change=made.change if math.isfinite(made.change) else None,
                    norm=norms[made.layer],
                )

    def sample_fisher(self, outputs: Tensor, likelihood: Likelihood) -> None:
        """Collects statistics of drawn labels where an optimizer wants those; before backward."""
        for optimizer in self.optimizers:
            if not isinstance(optimizer, THOR):
                continue
            if optimizer.engine.options.statistics.fisher == "mc":
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

    def evaluation(self) -> None:
        """Puts the weights that are evaluated in place, where they are not those that train."""
        for optimizer in self._switching():
            optimizer.eval()

    def training(self) -> None:
        """Puts the weights that train back."""
        for optimizer in self._switching():
            optimizer.train()

    def _switching(self) -> Iterator[Any]:
        """Yields the optimizers that train other weights than they evaluate (schedule-free)."""
        return (one for one in self.optimizers if hasattr(one, "eval"))

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


_SPECS: tuple[OptimizerSpec[Any], ...] = (
    OptimizerSpec("thor", "THOR as tuned here", THORSettings(), build_thor),
    OptimizerSpec("kfac", "K-FAC: unsplit, fixed interval", KFACSettings(), build_kfac),
    OptimizerSpec("ekfac", "K-FAC, eigenvalues corrected", KFACSettings(), build_ekfac),
    *(
        OptimizerSpec(variant.name, variant.description, variant.settings, build_thor)
        for variant in VARIANTS
    ),
    OptimizerSpec(
        "sgd", "SGD with Nesterov momentum", SGDSettings(), build_sgd, "momentum", first_order=True
    ),
    OptimizerSpec("adamw", "AdamW", AdamWSettings(), build_adamw, "beta2", first_order=True),
    OptimizerSpec(
        "schedule-free",
        "schedule-free AdamW (pytorch-optimizer)",
        ScheduleFreeSettings(),
        build_schedule_free,
        "beta1",
        first_order=True,
    ),
    OptimizerSpec(
        "muon",
        "Muon; SGD or AdamW on the rest",
        MuonSettings(),
        build_muon,
        "momentum",
        lacks=lacks_muon,
    ),
    OptimizerSpec("soap", "SOAP (pytorch-optimizer)", SOAPSettings(), build_soap, "beta2"),
    OptimizerSpec(
        "shampoo", "Shampoo (pytorch-optimizer)", ShampooSettings(), build_shampoo, "beta2"
    ),
    OptimizerSpec("singd", "SINGD (singd); SGD on the rest", SINGDSettings(), build_singd),
    OptimizerSpec(
        "lars", "LARS (pytorch-optimizer)", LARSSettings(), build_lars, "trust", first_order=True
    ),
    OptimizerSpec(
        "lamb", "LAMB (pytorch-optimizer)", LAMBSettings(), build_lamb, "beta2", first_order=True
    ),
)
OPTIMIZERS: dict[str, OptimizerSpec[Any]] = {spec.name: spec for spec in _SPECS}


def find_optimizer(name: str, *, argument: str = "--optimizer") -> OptimizerSpec[Any]:
    """Returns an optimizer by its name.

    Args:
        name: What the user gave.
        argument: Where the user gave it, for the message.

    Raises:
        BenchError: There is none of that name.
    """
    if name not in OPTIMIZERS:
        raise unknown_choice(argument, name, OPTIMIZERS)
    return OPTIMIZERS[name]


def lacking(names: Iterable[str]) -> dict[str, str]:
    """Returns, of those optimizers that don't run here, what each lacks.

    Args:
        names: Names of optimizers.
    """
    found = {name: find_optimizer(name, argument="--optimizers").lacks() for name in names}
    return {name: what for name, what in found.items() if what is not None}


def build_rule(model: nn.Module, config: RunConfig, steps_per_epoch: int) -> TrainingRule:
    """Builds the optimizer of a run with its schedule.

    Args:
        model: Model whose every parameter is to be trained.
        config: The run.
        steps_per_epoch: Optimizer steps in one epoch.

    Raises:
        BenchError: The optimizer refuses a setting.
    """
    spec = find_optimizer(config.optimizer)
    settings = from_values(type(spec.settings), dict(config.settings))
    reduction = find_workload(config.workload).loss_reduction
    training = Training(model, steps_per_epoch, reduction)
    try:
        optimizers = tuple(spec.build(training, settings))
    except (TypeError, ValueError) as error:
        raise BenchError(f"--optimizer {config.optimizer}: {reason(error)}") from error
    rate = factor(settings, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
    schedulers = tuple(LambdaLR(optimizer, rate) for optimizer in optimizers)
    return TrainingRule(optimizers, schedulers)
