"""A model in training: its data, its optimizer, one step, one evaluation, its state."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.peer import Takes
from thor_bench.optimizers.rule import build_rule
from thor_bench.records.config import DataSource, RunConfig, steps_until
from thor_bench.tasks import Task
from thor_bench.tasks.batches import Data, Share
from thor_bench.tasks.data import Batch
from thor_bench.tasks.judging import Judged
from thor_bench.tasks.streams import random_states, restore_random, seed_all
from thor_bench.tasks.trees import named
from thor_bench.training.checkpoint import Checkpoint, Progress
from thor_bench.training.precision import autocast
from thor_bench.training.ranks import ALONE, Ranks


class Session:
    """Everything that lives in memory during a run.

    Args:
        config: The run.
        task: What it trains.
        source: Where the data may be found.
        ranks: Processes that train it together.

    Raises:
        BenchError: Data are missing, or the device or a setting cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        source: DataSource,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.task = task
        self.ranks = ranks
        self.source = source
        self.device = ranks.device(config.device)
        self.data = self._load()
        torch.set_flush_denormal(True)
        seed_all(config.seed)
        torch.manual_seed(config.seed)
        self.model = task.build()
        with task.telling("putting the model on its device", task.model):
            self.model.to(self.device).to(memory_format=task.memory_format)
        if not self.model.training:  # as ``from_pretrained`` leaves it; parts may be in evaluation
            self.model.train()
        self._trained = ranks.wrap(self.model)
        self.rule = build_rule(self.model, config, self.data.steps_per_epoch)
        self._outputs = _Outputs(self.model) if self.rule.samples_fisher else None
        self._began = False
        self._only: Batch | None = None  # batch, where every step has the same
        self._require_one_process()
        ranks.draw_apart(config.seed)

    def _require_one_process(self) -> None:
        if self.ranks.size > 1 and self.rule.takes is not Takes.GRADIENTS:
            message = f"--optimizer {self.config.optimizer} searches along its steps in one process"
            raise BenchError(f"{message}; leave torchrun out, or name another optimizer")

    def _load(self) -> Data:
        splits = self.task.data(self.source)
        try:
            with self.task.telling("data"):
                return Data(
                    splits,
                    batch_size=self.config.batch_size,
                    steps_per_epoch=self.task.steps_per_epoch,
                    seed=self.config.seed,
                    device=self.device,
                    memory_format=self.task.memory_format,
                    share=Share(self.ranks.rank, self.ranks.size),
                    telling=self.task.telling,
                )
        except ValueError as error:
            raise BenchError(f"--batch-size: {reason(error)}; choose one in that range") from error

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def total_steps(self) -> int:
        """Steps until the horizon."""
        return steps_until(self.config.epochs, self.data.steps_per_epoch)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the training loss of this rank's part of a batch, ready for backward."""
        with autocast(self.task.autocast, self.device):
            loss = self.task.loss_of(self._trained, batch)
        if self._outputs is not None:
            self.rule.sample_fisher(self._outputs.take(), self.task.likelihood)
        return loss

    def step(self, batch: Batch, hear: Callable[[torch.Tensor], None]) -> None:
        """Takes a step.

        Args:
            batch: What it is on; not asked for where all steps are on the first one.
            hear: Is told the loss before the step; what it raises ends the run.

        Raises:
            BenchError: The loss, or the residuals, are not as the optimizer needs them.
        """
        match self.rule.takes:
            case Takes.GRADIENTS:
                loss = self.loss(batch)
                hear(loss)
                self.update(loss)
            case Takes.LOSSES:
                self._only = batch if self._only is None else self._only
                hear(self.rule.search(partial(self._loss_and_gradients, self._only)))
            case Takes.RESIDUALS:
                hear(self._search_residuals(batch))

    def _search_residuals(self, batch: Batch) -> torch.Tensor:
        def residuals() -> tuple[torch.Tensor, ...]:
            with autocast(self.task.autocast, self.device):
                return self.task.terms_of(self.model, batch)

        try:
            with self.task.telling("a step by residuals", self.task.loss):
                return self.rule.search(residuals)
        except ValueError as error:  # a built-in task's, or an option's
            name = f"{self.config.optimizer} on {self.config.workload}"
            raise BenchError(f"{name}: {reason(error)}") from error

    def _loss_and_gradients(self, batch: Batch) -> torch.Tensor:
        loss = self.loss(batch)
        self.backward(loss)
        return loss

    def update(self, loss: torch.Tensor) -> None:
        """Takes the optimizer step that a loss asks for, by its gradients."""
        self.backward(loss)
        self.rule.step()

    def backward(self, loss: torch.Tensor) -> None:
        """Takes the gradients of a loss in the place of those that are there.

        Raises:
            BenchError: The task's own code fails, or its loss is none of this model.
        """
        self.rule.zero_grad()
        with self.task.telling("the backward pass of a loss", self.task.loss):
            loss.backward()
            if not self._began:
                self._began = True
                _check_gradients(self.model)

    def judge(self, batch: Batch) -> Judged:
        """Returns what loss and metric say of a batch of test data, in the model's present mode."""
        with autocast(self.task.autocast, self.device):
            return self.task.judge(self.model, batch)

    def evaluate(self) -> tuple[float | None, float]:
        """Returns mean loss, None where it is not known, and metric over the whole test set.

        Raises:
            BenchError: A task's own code fails.
        """
        self.ranks.align(self.model)
        loss = score = samples = unknown = 0.0
        with modes_kept(self.model):
            self.model.eval()
            self.rule.evaluation()
            for batch in self.data.test_batches():
                told = self.judge(batch)
                loss += told.loss or 0.0
                unknown += told.loss is None
                score += told.score
                samples += told.samples
            self.rule.training()
        loss, score, samples, unknown = self.ranks.total([loss, score, samples, unknown])
        return None if unknown else loss / samples, self.task.metric_of(score / samples)

    def snapshot(self, progress: Progress, records_bytes: int) -> Checkpoint:
        """Returns the whole state between two steps."""
        return Checkpoint(
            config=self.config,
            progress=replace(progress),
            model=self.model.state_dict(),
            rule=self.rule.state_dict(),
            random=self.ranks.collect(random_states()),
            records_bytes=records_bytes,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over the state of a checkpoint of the same run.

        Raises:
            BenchError: The state belongs to another model or optimizer.
        """
        try:
            self.model.load_state_dict(checkpoint.model)
            self.rule.load_state_dict(dict(checkpoint.rule))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            message = f"--resume: the checkpoint does not fit this run ({reason(error)[:120]})"
            raise BenchError(f"{message}; start anew with --overwrite") from error
        if self.rule.takes is Takes.LOSSES:
            self._only = next(self.data.batches(0))
        state = self.ranks.pick(checkpoint.random)
        if state is not None:
            restore_random(state)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each module is in training or evaluation as before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Outputs:
    """What a model has returned last; tensors, or objects with logits, as transformers return."""

    def __init__(self, model: nn.Module) -> None:
        self._last: Any = None
        model.register_forward_hook(self._keep)

    def _keep(self, model: nn.Module, _inputs: object, outputs: Any) -> None:
        if model.training:
            self._last = getattr(outputs, "logits", outputs)

    def take(self) -> torch.Tensor:
        """Returns it, and lets it go."""
        outputs, self._last = self._last, None
        if isinstance(outputs, torch.Tensor):
            return outputs
        message = f"fisher=mc needs outputs that are a tensor, the model returned {named(outputs)}"
        raise BenchError(f"{message}; leave --set fisher=empirical")


def _check_gradients(model: nn.Module) -> None:
    """Checks that a loss is one of this model.

    Raises:
        ValueError: None of its parameters has a gradient.
    """
    if all(parameter.grad is None for parameter in model.parameters()):
        message = "no parameter of the model has a gradient"
        raise ValueError(f"{message}; compute the loss with the model that is its argument")
