"""What a task is: a model, its data, a loss, a metric, and perhaps a target."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thor_bench.records.config import DataSource
from thor_bench.records.task_card import Measure, TaskCard
from thor_bench.tasks.data import TrainTest
from thor_bench.tasks.given import DEFAULT_BATCH, gives_batches, read_given
from thor_bench.tasks.judging import Judged, Score, checked_loss, judged, judged_loss
from thor_bench.tasks.squares import Squares
from thor_bench.tasks.trees import named

Likelihood = Literal["categorical", "bernoulli"]
_CHOICES = {
    "loss_reduction": ("mean", "positions_mean"),
    "likelihood": ("categorical", "bernoulli"),
    "autocast": (None, torch.bfloat16, torch.float16),
    "memory_format": (torch.contiguous_format, torch.channels_last),
}
_MOST_DIGITS = 15
_TRAINED: WeakSet[nn.Module] = WeakSet()  # what an earlier run of this process has had


@dataclass(frozen=True, kw_only=True)
class Metric(Measure):
    """What the test data are judged by.

    ``name``, ``higher_is_better``, ``unit``, ``low``, ``high`` and ``digits`` say how
    it is written.

    Attributes:
        score: ``(model, batch) -> number``: the mean over the samples of a batch of test data, as a
            number or a tensor of one, or a tensor ``[samples]`` with the score of each. It runs
            in evaluation mode, without gradients. Where it has the loss of the batch anyway, it
            may return ``(loss, score)``, and the records have both. None: the task's loss.
        of_mean: The metric as a function of the mean of scores, such as ``math.sqrt``.
    """

    score: Callable[[Any, Any], Score] | None = None
    of_mean: Callable[[float], float] = float


class Origin(Protocol):
    """Where a task of a user's own comes from."""

    @property
    def content(self) -> str:
        """Digest of its file."""

    @property
    def label(self) -> str:
        """Its name for folders."""

    def telling(self, doing: str, where: object = None) -> AbstractContextManager[object]:
        """Returns the context that tells in one line of whatever the user's code raises.

        Args:
            doing: What is done, in words.
            where: Function whose line is told where the error has none of the file's.
        """


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training task with everything fixed but the optimizer.

    A batch is whatever the data give: a tensor, or tuples, lists and mappings of tensors, however
    nested; it comes on the device that trains. The samples of a batch lie along the first
    dimension of its tensors.

    Attributes:
        model: ``() -> model`` with fresh weights, drawn from torch's global generator, which is
            seeded before. Or a model: then ``task`` is called again for every run.
        loss: ``(model, batch) -> scalar``, ready for backward, a mean over the samples; or
            ``Squares(residuals)``, half the mean squares of what should be zero.
        train: Training data: a tensor, or a tuple or mapping of tensors ``[samples, ...]``; a data
            set with length and index, or a list of samples; a ``DataLoader``, any other iterable of
            batches, or a function that returns one. Of tensors and data sets the order is drawn
            here, by seed and epoch; loaders keep theirs, under the same seeds.
        test: Test data, likewise, which are read in their order.
        load: In the place of both: ``(source) -> TrainTest``, called when a run begins.
        metric: What the test data are judged by. Default: the loss on them, the lower the better.
        target: Value of the metric that a comparison times; None: what the best of the other
            optimizers reaches with every seed.
        epochs: Horizon; fractions count.
        batch_size: Samples per step, of tensors and data sets (default 32); loaders have theirs.
        steps_per_epoch: Batches that make an epoch, at most; data without a length need it.
        collate: ``[sample, ...] -> batch`` of a data set; None: torch's.
        exclude: Modules, by name or type, whose parameters THOR leaves to its base rule and Muon to
            AdamW. Output layers are found by themselves.
        loss_reduction: What ``loss`` is a mean over: samples, or samples and positions.
        likelihood: What the outputs are the parameters of: classes in the last dimension, or
            chances of single bits. For a sampled Fisher only.
        autocast: Type for loss and score under autocast where the device has instructions for
            it, or None for float32.
        memory_format: Layout of images and convolution weights.
        name: Name on the command line; of a file, the file.
        description: One line.
        input_summary: Data and shapes, one line.
        origin: Where it comes from; None: it is built in.

    Raises:
        TypeError: A field has another type.
        ValueError: A number is out of range.
    """

    model: Callable[[], nn.Module] | nn.Module
    loss: Callable[[Any, Any], Tensor]
    train: Any = None
    test: Any = None
    load: Callable[[DataSource], TrainTest[Any]] | None = None
    metric: Metric = Metric(name="loss", higher_is_better=False)
    target: float | None = None
    epochs: float = 10
    batch_size: int | None = None
    steps_per_epoch: int | None = None
    collate: Callable[[list[Any]], Any] | None = None
    exclude: tuple[str | type[nn.Module], ...] = ()
    loss_reduction: Literal["mean", "positions_mean"] = "mean"
    likelihood: Likelihood = "categorical"
    autocast: torch.dtype | None = None
    memory_format: torch.memory_format = torch.contiguous_format
    name: str = ""
    description: str = ""
    input_summary: str = ""
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.batch_size is None and not (self.load is None and gives_batches(self.train)):
            object.__setattr__(self, "batch_size", DEFAULT_BATCH)

    @property
    def label(self) -> str:
        """Its name for folders."""
        return self.name if self.origin is None else self.origin.label

    @property
    def card(self) -> TaskCard:
        """What its records say of it."""
        measure = {field.name: getattr(self.metric, field.name) for field in fields(Measure)}
        return TaskCard(
            name=self.name,
            description=self.description,
            input_summary=self.input_summary,
            metric=Measure(**measure),
            target=self.target,
        )

    def telling(self, doing: str, where: object = None) -> AbstractContextManager[object]:
        """Returns the context for code of a user's own; a built-in task's may show its faults."""
        return nullcontext() if self.origin is None else self.origin.telling(doing, where)

    def data(self, source: DataSource) -> TrainTest[Any]:
        """Reads training and test data.

        Raises:
            BenchError: They are missing, or of a kind that is not known.
        """
        with self.telling("data", self.load):
            return read_given(self, source) if self.load is None else self.load(source)

    def build(self) -> nn.Module:
        """Returns a fresh model."""
        with self.telling("building the model", self.model):
            model: Any = self.model()
            if not isinstance(model, nn.Module):
                message = f"model() returned {named(model)}"
                raise TypeError(f"{message}; it must return a torch.nn.Module")
            check_model(model)
            _TRAINED.update(model.modules())
            built: nn.Module = model
            return built

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the loss of a batch, ready for backward."""
        with self.telling("the loss of a batch", self.loss):
            return checked_loss(self.loss(model, batch))

    def terms_of(self, model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
        """Returns the residuals of a batch, term by term, of a loss that is a sum of squares."""
        assert isinstance(self.loss, Squares)  # noqa: S101 - a plan has refused any other
        with self.telling("the residuals of a batch", self.loss):
            return self.loss.terms(model, batch)

    def judge(self, model: nn.Module, batch: Any) -> Judged:
        """Returns what the loss and the metric say of a batch of test data.

        Gradients are off, but for a loss that is the metric too: it may want derivatives.
        """
        score = self.metric.score
        if score is None:
            with self.telling("the loss of a batch of test data", self.loss), torch.enable_grad():
                return judged_loss(checked_loss(self.loss(model, batch)), batch)
        with self.telling("the metric of a batch of test data", score), torch.no_grad():
            return judged(score(model, batch), batch)

    def metric_of(self, mean: float) -> float:
        """Returns the metric from the mean of the scores of all samples."""
        with self.telling("the metric's of_mean", self.metric.of_mean):
            return float(self.metric.of_mean(mean))


def check(task: Any) -> None:
    """Checks what a task is made of.

    Raises:
        TypeError: A field has another type.
        ValueError: A number is out of range.
    """
    if not isinstance(task.metric, Metric):
        message = f"metric is {named(task.metric)}; it must be a Metric"
        raise TypeError(f"{message}, such as Metric(name=…, score=…, higher_is_better=True)")
    _check_metric(task.metric)
    score = task.metric.score or task.loss
    for name, value in {
        "model": task.model,
        "loss": task.loss,
        "the metric's score": score,
        "load": task.load or callable,
        "collate": task.collate or callable,
    }.items():
        if not callable(value):
            raise TypeError(f"{name} is {named(value)}; it must be a function")
    if not isinstance(task.exclude, tuple | list):
        message = f"exclude is {task.exclude!r}; it must be a tuple of modules' names or types"
        raise TypeError(f"{message}, such as ('head',)")
    for name, data in {"train": task.train, "test": task.test}.items():
        if task.load is None and data is None:
            raise TypeError(f"{name} is missing; give tensors, a data set or a DataLoader")
    for name, allowed in _CHOICES.items():
        _check_choice(name, getattr(task, name), allowed)
    for name in ("batch_size", "steps_per_epoch", "epochs", "target"):
        _check_number(name, getattr(task, name), whole="_" in name, positive=name != "target")


def _check_metric(metric: Any) -> None:
    for name, value in {"name": metric.name, "unit": metric.unit}.items():
        if not isinstance(value, str) or not value.isprintable():
            raise TypeError(f"the metric's {name} is {value!r}; it must be text of one line")
    if not metric.name.strip():
        raise ValueError("the metric's name is empty; name what it measures, such as 'accuracy'")
    digits = metric.digits
    if not (digits is None or (isinstance(digits, int) and 0 <= digits <= _MOST_DIGITS)):
        message = (
            f"the metric's digits is {digits!r}; it must be a whole number of 0 … {_MOST_DIGITS}"
        )
        raise TypeError(f"{message}, or None")
    for name in ("low", "high"):
        _check_number(f"the metric's {name}", getattr(metric, name), whole=False, positive=False)
    if not isinstance(metric.higher_is_better, bool):
        message = f"the metric's higher_is_better is {metric.higher_is_better!r}"
        raise TypeError(f"{message}; it must be True or False")


def check_model(model: nn.Module) -> None:
    """Checks that a model can begin a run.

    Raises:
        ValueError: It was trained before, has weights without a shape, or none that train.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        message = "the model has no parameter that requires a gradient, so nothing would train"
        raise ValueError(f"{message}; thaw some with requires_grad_()")
    if any(map(is_lazy, model.parameters())):
        message = "the model has lazy layers, whose weights have no shape yet"
        raise ValueError(f"{message}; name their sizes, or call it once on a batch in model()")
    for module in _TRAINED.intersection(model.modules()):
        if any(own.requires_grad for own in module.parameters(recurse=False)):
            message = f"the model has a {type(module).__name__} that an earlier run has trained"
            raise ValueError(f"{message}; make all of it anew in each call of model() or task()")


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def _check_number(name: str, value: Any, *, whole: bool, positive: bool) -> None:
    if value is None and name != "epochs":
        return
    if not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}; it must be a {'whole ' if whole else ''}number")
    if value <= 0 and positive:
        raise ValueError(f"{name}={value} must be above 0")
