"""What the bench knows of an optimizer: its settings, how it is built, its recipes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from typing import Any, Generic, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.settings import S

Divided: TypeAlias = tuple[list[nn.Parameter], list[nn.Parameter]]


@dataclass(frozen=True)
class Training:
    """What an optimizer is built for.

    Attributes:
        model: Model whose every parameter is to be trained.
        steps_per_epoch: Optimizer steps in one epoch, for schedules over epochs.
        loss_reduction: What the loss is a mean over.
        exclude: Modules, by name or type, that are not to train as matrices.
    """

    model: nn.Module
    steps_per_epoch: int
    loss_reduction: Literal["mean", "positions_mean"] = "mean"
    exclude: tuple[str | type[nn.Module], ...] = ()

    @property
    def excluded(self) -> Iterator[nn.Parameter]:
        """The parameters of those modules, with all that they hold."""
        for name, module in self.model.named_modules():
            for one in self.exclude:
                meant = fnmatchcase(name, one) if isinstance(one, str) else isinstance(module, one)
                if meant:
                    yield from module.parameters()

    @property
    def head(self) -> nn.Linear | nn.Conv2d | None:
        """The last linear layer or convolution, which maps to the model's outputs."""
        kinds = nn.Linear | nn.Conv2d
        layers = [module for module in self.model.modules() if isinstance(module, kinds)]
        return layers[-1] if layers else None

    def divide(self, chosen: Iterable[nn.Parameter]) -> Divided:
        """Returns the parameters that are among the chosen, and all others."""
        ids = {id(parameter) for parameter in chosen}
        parameters = list(self.model.parameters())
        return [p for p in parameters if id(p) in ids], [p for p in parameters if id(p) not in ids]


class Takes(Enum):
    """What a step takes."""

    GRADIENTS = "gradients of a batch, and a learning rate"
    LOSSES = "a closure of the loss, of the same batch in every step"
    RESIDUALS = "a closure of the residuals"


@dataclass(frozen=True)
class Recipe:
    """What an optimizer uses on one workload, tuned here or published.

    Attributes:
        changes: ``key=value`` words, as after ``--set``, over the optimizer's settings.
        epochs: Horizon of the schedule.
        batch_size: Samples per step; None takes the workload's.
    """

    changes: str
    epochs: float
    batch_size: int | None = None


@dataclass(frozen=True)
class Peer(Generic[S]):
    """An optimizer that can be named on the command line.

    Attributes:
        name: Its name.
        description: One line.
        settings: What recipes and ``untuned`` change.
        build: Builds the torch optimizers that together train every parameter of a model.
        takes: What a step takes.
        own: Setting that a study searches besides those that all have.
        first_order: Whether it uses gradients entry by entry alone, and so may set a target.
        ours: Whether it is this library's, and so may not set what it is compared by.
        lacks: Says what this installation lacks for it; None where it runs.
        untuned: Changes of its settings to what its authors chose, for ``--preset defaults``.
        recipes: Recipes by ``workload``, or ``workload/preset`` where they are published ones.
    """

    name: str
    description: str
    settings: S
    build: Callable[[Training, S], Sequence[Optimizer]]
    takes: Takes = field(default=Takes.GRADIENTS, kw_only=True)
    own: str = "damping"
    first_order: bool = False
    ours: bool = False
    lacks: Callable[[], str | None] = lambda: None
    untuned: str = ""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)


def imported(path: str) -> Any:
    """Imports a class late: packages take seconds that other optimizers need not wait for.

    Raises:
        BenchError: Its package is not installed.
    """
    try:
        return resolve_name(path)
    except ImportError as error:
        message = f"this optimizer comes from {path.partition('.')[0]}"
        raise BenchError(f"{message}; pip install 'torch-thor[bench]'") from error


def over_parameters(
    path: str, *same: str, group: Mapping[str, Any] | None = None, **renamed: str
) -> Callable[[Training, Any], Sequence[Optimizer]]:
    """Returns the builder of a class that takes all parameters alike.

    Args:
        path: The class, package first.
        same: Arguments, besides lr, weight_decay and betas, whose settings have their names.
        group: What else the group of parameters holds.
        renamed: The setting behind each other argument.
    """
    arguments = {name: name for name in ("lr", "weight_decay", *same)} | renamed

    def build(training: Training, settings: Any) -> Sequence[Optimizer]:
        options = {argument: getattr(settings, name) for argument, name in arguments.items()}
        if hasattr(settings, "beta1"):
            options["betas"] = (settings.beta1, settings.beta2)
        parameters = {"params": list(training.model.parameters()), **(group or {})}
        return [imported(path)([parameters], **options)]

    return build
